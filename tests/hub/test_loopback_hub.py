"""The loopback Hub against unmodified clients of both majors, and against plain HTTP, as a device asks it."""

import hashlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from tests.hub.faults import Corrupt, Cut, Overtake, Refuse
from tests.hub.loopback_hub import READER, WRITER, serve
from tests.hub.wire import Hub

OTHER_MAJOR = "huggingface_hub==1.33.0"
REPO = "acme/robot"
LARGE, SMALL = "engines/x/plan.bin", "manifest.json"
FILES = {LARGE: os.urandom(200_000), SMALL: b'{"a": 1}\n', "a name.txt": b"text"}

ROUND_TRIP = """
import json, sys
from pathlib import Path
import huggingface_hub as h
url, token, repo, source, out = sys.argv[1:]
api = h.HfApi(url, token=token)
api.create_repo(repo, exist_ok=True)
first = api.upload_folder(repo_id=repo, folder_path=source).oid
api.create_tag(repo, tag="v1", revision=first)
(Path(source) / "manifest.json").write_text("{}")
(Path(source) / "a name.txt").unlink()
second = api.upload_folder(repo_id=repo, folder_path=source, delete_patterns=["*"], parent_commit=first).oid
for tag, commit in (("v1", first), ("main", second)):
    h.snapshot_download(repo, revision=tag, local_dir=Path(out, tag), endpoint=url, token=False)
    assert api.repo_info(repo, revision=tag).sha == commit
refs = api.list_repo_refs(repo)
print(json.dumps({"version": h.__version__, "tags": {t.name: t.target_commit == first for t in refs.tags}}))
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with serve(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name, data in FILES.items():
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "source"


@pytest.fixture
def api(hub: Hub) -> HfApi:
    return HfApi(hub.url, token=WRITER)


@pytest.fixture
def commit(api: HfApi, source: Path) -> str:
    """FILES in a public repository."""
    api.create_repo(REPO)
    return api.upload_folder(repo_id=REPO, folder_path=source).oid


@pytest.fixture(scope="session")
def other_major(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with the other major; fails where no package index can be reached."""
    venv = tmp_path_factory.mktemp("other") / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    install = [venv / "bin" / "python", "-m", "pip", "install", "--quiet", OTHER_MAJOR]
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, f"{OTHER_MAJOR} cannot be installed: {done.stderr}"
    return venv / "bin" / "python"


def files_of(folder: Path) -> dict[str, bytes]:
    """What was downloaded, without the client's notes and the Hub's own file."""
    paths = [p for p in folder.rglob("*") if p.is_file() and ".cache" not in p.parts]
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}
    assert b"filter=lfs" in found.pop(".gitattributes")
    return found


def download(hub: Hub, folder: Path) -> dict[str, bytes]:
    snapshot_download(REPO, local_dir=folder, endpoint=hub.url, token=False)
    return files_of(folder)


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None


def get(url: str, follow: bool = True, **headers: str) -> tuple[int, Message, bytes]:
    opener = urllib.request.build_opener(*([] if follow else [NoRedirect]))
    try:
        with opener.open(urllib.request.Request(url, headers=headers)) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


@pytest.mark.parametrize("major", ["installed", "other"])
def test_round_trip(
    hub: Hub, source: Path, tmp_path: Path, major: str, request: pytest.FixtureRequest
) -> None:
    python = sys.executable if major == "installed" else request.getfixturevalue("other_major")
    command = [python, "-c", ROUND_TRIP, hub.url, WRITER, REPO, source, tmp_path / "out"]
    environment = {**os.environ, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert (answer["version"] == "1.33.0") == (major == "other") and answer["tags"] == {"v1": True}
    assert len(hub.asked("PUT")) == 1
    assert files_of(tmp_path / "out" / "v1") == FILES
    assert files_of(tmp_path / "out" / "main") == {LARGE: FILES[LARGE], SMALL: b"{}"}


def test_a_second_upload_sends_only_what_changed(hub: Hub, api: HfApi, commit: str, source: Path) -> None:
    uploads = len(hub.asked("PUT"))
    assert uploads == 1 and hub.received("PUT") == len(FILES[LARGE])
    (source / SMALL).write_text("{}")
    api.upload_folder(repo_id=REPO, folder_path=source)
    assert len(hub.asked("PUT")) == uploads
    assert hub.asked("/commit/")[-1].received < 1000


def test_an_object_that_any_repository_holds_is_not_sent_again(
    hub: Hub, api: HfApi, commit: str, source: Path
) -> None:
    api.create_repo("acme/other")
    api.upload_folder(repo_id="acme/other", folder_path=source)
    assert len(hub.asked("PUT")) == 1


def test_a_long_tree_comes_in_pages(hub: Hub, api: HfApi, commit: str) -> None:
    hub.page = 2
    listed = {item.path for item in api.list_repo_tree(REPO, recursive=True)}
    assert listed == {*FILES, ".gitattributes"} and len(hub.asked("/tree/")) == 2


def test_what_the_hub_says_of_its_files(api: HfApi, commit: str) -> None:
    siblings = api.model_info(REPO, files_metadata=True).siblings or []
    large = next(file.lfs for file in siblings if file.rfilename == LARGE)
    assert large is not None and large.sha256 == hashlib.sha256(FILES[LARGE]).hexdigest()
    assert {file.rfilename: file.size for file in siblings if file.lfs is None}[SMALL] == len(FILES[SMALL])


def test_the_store_outlives_the_server(hub: Hub, commit: str, tmp_path: Path) -> None:
    with serve(tmp_path / "hub") as again:
        assert download(again, tmp_path / "out") == FILES


def test_plain_http(hub: Hub, commit: str) -> None:
    """What a device does without the client."""
    status, _, body = get(f"{hub.url}/api/models/{REPO}/revision/main")
    assert status == 200 and json.loads(body)["sha"] == commit
    for name, data in FILES.items():
        assert get(f"{hub.url}/{REPO}/resolve/{commit}/{name.replace(' ', '%20')}")[2] == data
    assert get(f"{hub.url}/api/models/{REPO}/revision/v9")[0] == 404
    status, headers, _ = get(f"{hub.url}/{REPO}/resolve/{commit}/nothing")
    assert (status, headers["X-Error-Code"]) == (404, "EntryNotFound")


@pytest.mark.parametrize("name", [LARGE, SMALL])
def test_ranges(hub: Hub, commit: str, name: str) -> None:
    url, data = f"{hub.url}/{REPO}/resolve/{commit}/{name}", FILES[name]
    status, headers, body = get(url, Range="bytes=3-")
    assert (status, body) == (206, data[3:])
    assert headers["Content-Range"] == f"bytes 3-{len(data) - 1}/{len(data)}"
    assert get(url, Range="bytes=2-5")[2] == data[2:6]
    status, headers, _ = get(url, Range=f"bytes={len(data)}-")
    assert (status, headers["Content-Range"]) == (416, f"bytes */{len(data)}")


def test_a_large_file_is_elsewhere_and_takes_no_token(hub: Hub, commit: str) -> None:
    """The hash is on the redirect; the storage's own ETag is another, and a token there is an error."""
    url = f"{hub.url}/{REPO}/resolve/main/{LARGE}"
    status, headers, _ = get(url, follow=False, Authorization=f"Bearer {READER}")
    assert status == 302 and headers["X-Repo-Commit"] == commit
    assert headers["X-Linked-ETag"] == f'"{hashlib.sha256(FILES[LARGE]).hexdigest()}"'
    assert not headers["Location"].startswith(hub.url)
    assert get(headers["Location"], Authorization=f"Bearer {READER}")[0] == 400
    status, at_storage, _ = get(headers["Location"])
    assert status == 200 and at_storage["ETag"] != headers["X-Linked-ETag"]


def test_a_small_file_is_behind_a_relative_redirect(hub: Hub, commit: str) -> None:
    status, headers, _ = get(f"{hub.url}/{REPO}/resolve/main/{SMALL}", follow=False)
    assert status == 307 and headers["Location"].startswith("/api/resolve-cache/")


def test_private_repository(hub: Hub, api: HfApi, source: Path, tmp_path: Path) -> None:
    api.create_repo(REPO, private=True)
    api.upload_folder(repo_id=REPO, folder_path=source)
    with pytest.raises(RepositoryNotFoundError):
        HfApi(hub.url, token=False).model_info(REPO)
    snapshot_download(REPO, local_dir=tmp_path / "out", endpoint=hub.url, token=READER)
    assert files_of(tmp_path / "out") == FILES


@pytest.mark.parametrize("token, status", [(False, 401), ("hf_nobody", 401), (READER, 403)])
def test_who_may_not_write(hub: Hub, commit: str, token: str | bool, status: int) -> None:
    with pytest.raises(HfHubHTTPError) as error:
        HfApi(hub.url, token=token).create_tag(REPO, tag="v1")
    assert error.value.response.status_code == status


def test_a_tag_is_made_once(api: HfApi, commit: str) -> None:
    api.create_tag(REPO, tag="v1")
    with pytest.raises(HfHubHTTPError) as error:
        api.create_tag(REPO, tag="v1")
    assert error.value.response.status_code == 409


def test_a_stale_parent_is_refused(hub: Hub, api: HfApi, commit: str, source: Path) -> None:
    hub.faults.append(Overtake("/commit/main"))
    (source / SMALL).write_text("{}")
    with pytest.raises(HfHubHTTPError) as error:
        api.upload_folder(repo_id=REPO, folder_path=source, parent_commit=commit)
    assert error.value.response.status_code == 412
    assert api.model_info(REPO).sha != commit


def test_an_upload_that_is_not_what_it_says(hub: Hub) -> None:
    url = f"{hub.url}/upload/{REPO}/{'0' * 64}"
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(urllib.request.Request(url, data=b"data", method="PUT"))
    assert error.value.code == 400 and not list(hub.store.blobs.iterdir())


def test_a_cut_download(hub: Hub, commit: str) -> None:
    hub.faults.append(Cut("GET /cdn/", after=70_000))
    url = f"{hub.url}/{REPO}/resolve/{commit}/{LARGE}"
    with urllib.request.urlopen(url) as response, pytest.raises(Exception, match="IncompleteRead") as error:
        response.read()
    assert error.value.partial == FILES[LARGE][:70_000]  # type: ignore[attr-defined]
    assert hub.sent("GET /cdn/") == 70_000
    assert get(url)[2] == FILES[LARGE], "a fault happens as often as it says"


def test_a_cut_upload_leaves_nothing(hub: Hub, api: HfApi, source: Path, tmp_path: Path) -> None:
    api.create_repo(REPO)
    before = set(hub.store.blobs.iterdir())
    hub.faults.append(Cut("PUT /upload/", after=70_000))
    url = f"{hub.url}/upload/{REPO}/{hashlib.sha256(FILES[LARGE]).hexdigest()}"
    with pytest.raises(OSError):
        urllib.request.urlopen(urllib.request.Request(url, data=FILES[LARGE], method="PUT"))
    assert hub.received("PUT") == 70_000 and set(hub.store.blobs.iterdir()) == before


def test_a_corrupted_body_of_equal_size_goes_unnoticed_by_the_client(
    hub: Hub, commit: str, tmp_path: Path
) -> None:
    """Which is why `pi05 pull` hashes every file itself."""
    hub.faults.append(Corrupt("GET /cdn/"))
    found = download(hub, tmp_path / "out")[LARGE]
    assert len(found) == len(FILES[LARGE]) and found != FILES[LARGE]
    assert sum(a != b for a, b in zip(found, FILES[LARGE], strict=True)) == 1


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_hub(hub: Hub, commit: str, status: int) -> None:
    hub.faults.append(Refuse("GET /cdn/", status=status, retry_after=7, times=2))
    url = f"{hub.url}/{REPO}/resolve/{commit}/{LARGE}"
    answers = [get(url) for _ in range(3)]
    assert [answer[0] for answer in answers] == [status, status, 200]
    assert [answer[1]["Retry-After"] for answer in answers] == ["7", "7", None]


def test_the_client_asks_a_busy_hub_again(hub: Hub, commit: str, tmp_path: Path) -> None:
    hub.faults.append(Refuse("GET /cdn/", status=429, retry_after=0))
    assert download(hub, tmp_path / "out") == FILES
    assert [request.status for request in hub.asked("GET /cdn/")] == [429, 200]
