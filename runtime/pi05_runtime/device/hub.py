"""The two calls of the Hugging Face Hub that a device makes: which commit, and a file from some byte on.

The Hub's own client hashes nothing and starts over after a kill, so it is not used here; `requests` is. The
environment is the usual one: HF_ENDPOINT, HF_TOKEN, and proxies.
"""

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import requests

from pi05_runtime.errors import NetworkError

ENDPOINT = "https://huggingface.co"
TIMEOUT_S = (10, 60)
"""To connect, and between two bytes."""
WAITS_S = (1, 2, 4, 8, 16)
"""Before each further try; a server that asks for more with Retry-After gets it, up to MOST_WAIT_S."""
MOST_WAIT_S = 120
CHUNK_BYTES = 1 << 16
SMALL_BYTES = 64 << 20
"""More than any manifest, signature or answer about a revision."""
SERVER_ERROR = 500
COMMIT = re.compile("[0-9a-f]{40}")

T = TypeVar("T")


class _TryAgain(Exception):
    """A fault that may pass. wait: seconds that the server asks for, 0 if it asks for none."""

    def __init__(self, text: str, wait: float = 0) -> None:
        super().__init__(text)
        self.wait = wait


class Hub:
    """One repository of models."""

    def __init__(self, repo: str) -> None:
        self.repo = repo
        self._endpoint = os.environ.get("HF_ENDPOINT", ENDPOINT).rstrip("/")
        self._session = requests.Session()
        if token := os.environ.get("HF_TOKEN"):
            self._session.headers["Authorization"] = f"Bearer {token}"

    def commit(self, revision: str) -> str:
        """The full commit of a branch, tag or commit. Errors: NetworkError."""
        url = f"{self._endpoint}/api/models/{self.repo}/revision/{quote(revision, safe='')}"
        data = self._retried(lambda: self._small(url), f"{self.repo}@{revision}")
        try:
            found = str(json.loads(data)["sha"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise NetworkError(f"{url}: no commit in the answer ({error!r}); check HF_ENDPOINT") from error
        if not COMMIT.fullmatch(found):
            raise NetworkError(f"{url}: {found!r} found, 40 hex digits expected; check HF_ENDPOINT")
        return found

    def read(self, commit: str, name: str) -> bytes:
        """A small file. Errors: NetworkError."""
        return self._retried(lambda: self._small(self._url(commit, name)), name)

    def download(
        self, commit: str, name: str, part: Path, size: int, arrived: Callable[[int], object]
    ) -> None:
        """Brings `part` to `size` bytes, from where it ends. arrived: told of every chunk's bytes.

        Errors: NetworkError; what has arrived stays, to be gone on with.
        """

        def ask() -> None:
            have = part.stat().st_size if part.exists() else 0
            if have > size:
                part.unlink()
                have = 0
            if have == size:
                return
            with self._get(self._url(commit, name), {"Range": f"bytes={have}-"} if have else {}) as response:
                whole = response.status_code == requests.codes.ok
                if whole:
                    arrived(-have)
                with part.open("wb" if whole else "ab") as file:
                    for chunk in self._chunks(response):
                        file.write(chunk)
                        arrived(len(chunk))
                        if file.tell() > size:
                            raise NetworkError(f"{name}: more than its {size} bytes sent; tell the publisher")
            if (found := part.stat().st_size) < size:
                raise _TryAgain(f"{found} of {size} bytes arrived")

        self._retried(ask, name)

    def _url(self, commit: str, name: str) -> str:
        return f"{self._endpoint}/{self.repo}/resolve/{commit}/{quote(name)}"

    def _small(self, url: str) -> bytes:
        """Errors: _TryAgain, NetworkError."""
        data = bytearray()
        with self._get(url) as response:
            for chunk in self._chunks(response):
                data += chunk
                if len(data) > SMALL_BYTES:
                    raise NetworkError(f"{url}: over {SMALL_BYTES} bytes sent; this is no bundle")
        return bytes(data)

    def _get(self, url: str, headers: dict[str, str] | None = None) -> requests.Response:
        """Errors: _TryAgain, NetworkError."""
        asked = {"Accept-Encoding": "identity"} | (headers or {})
        try:
            response = self._session.get(url, headers=asked, stream=True, timeout=TIMEOUT_S)
        except requests.RequestException as error:
            raise _TryAgain(f"{self._endpoint} cannot be reached ({error})") from error
        code = response.status_code
        if code in (requests.codes.ok, requests.codes.partial):
            return response
        response.close()
        if code == requests.codes.too_many or code >= SERVER_ERROR:
            raise _TryAgain(f"{url}: status {code}", _seconds(response.headers.get("Retry-After", "")))
        if code in (requests.codes.unauthorized, requests.codes.forbidden):
            raise NetworkError(
                f"{url}: status {code}: check repository and revision, and set HF_TOKEN to a token that may "
                "read it"
            )
        if code == requests.codes.not_found:
            raise NetworkError(
                f"{url}: not found: check repository, revision and file; a private repository needs HF_TOKEN"
            )
        if code == requests.codes.requested_range_not_satisfiable:
            raise NetworkError(f"{url}: ends before the size that the manifest states; tell the publisher")
        raise NetworkError(f"{url}: status {code} found, 200 or 206 expected; pull again")

    def _chunks(self, response: requests.Response) -> Iterator[bytes]:
        try:
            yield from response.iter_content(CHUNK_BYTES)
        except requests.RequestException as error:
            raise _TryAgain(f"the connection broke ({error})") from error

    def _retried(self, ask: Callable[[], T], what: str) -> T:
        for wait in WAITS_S:
            try:
                return ask()
            except _TryAgain as error:
                time.sleep(min(max(wait, error.wait), MOST_WAIT_S))
        try:
            return ask()
        except _TryAgain as error:
            raise NetworkError(
                f"{what}: {error}, after {len(WAITS_S) + 1} tries; what arrived is kept, pull again to go on"
            ) from error


def _seconds(header: str) -> float:
    return float(header) if header.isdecimal() else 0
