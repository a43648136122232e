"""A repository on the Hub as a publisher sees it: what it holds, and one commit that makes it hold this.

The client dedupes what travels; what is here decides which files differ, so that a person is told, and
looks again afterwards, since an upload is only as good as what arrived.
"""

import hashlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import RepoFile

from export.stage import disk_is_full
from pi05_runtime.errors import Pi05Error
from pi05_runtime.manifest import File

KEPT = ".gitattributes"
"""The Hub's own: which files are large."""
ADVICE = {
    401: "the token is not valid, or may not see the repository: run `hf auth login`",
    403: "the token may not write there: make one that may, at the Hub's settings, and run `hf auth login`",
    404: "check the repository's name, and that the token may see it",
    409: "somebody else made the same at the same time: run the command again",
    412: "somebody else committed at the same time, and nothing of this was taken: run the command again",
    429: "too many requests: wait some minutes, then run the command again",
}
LATER = "run the command again later; what was uploaded is not sent twice"


class PublishError(Pi05Error):
    """A bundle that is not to be published, or a Hub that did not take it."""


class LocalFile(msgspec.Struct, frozen=True):
    """A file to publish, and the size and hash that it is known to have."""

    path: Path
    file: File


@contextmanager
def explained(repo: str) -> Generator[None]:
    """What the Hub, the network or the client refuse, as one line. Errors: PublishError."""
    try:
        yield
    except Pi05Error:
        raise
    except HfHubHTTPError as error:
        status = error.response.status_code
        said = f" ({error.server_message})" if error.server_message else ""
        raise PublishError(f"{repo}: the Hub answered {status}{said}; {ADVICE.get(status, LATER)}") from error
    except Exception as error:  # of the client, its HTTP library or its transfer: they share no base
        if disk_is_full(error):
            raise
        said = " ".join(str(error).split()) or type(error).__name__
        raise PublishError(f"{repo}: {said}; check name and network, then {LATER}") from error


class Repository:
    """A model repository; every method talks to the Hub and may raise PublishError."""

    def __init__(self, name: str, private: bool) -> None:
        """Makes the repository unless it is there.

        Errors: PublishError too for a name without an owner, without a token, or if a private one was asked
        for and a public one is there.
        """
        if name.count("/") != 1:
            raise PublishError(f"repository {name!r} found, OWNER/NAME expected; name the owner too")
        if (token := get_token()) is None:
            raise PublishError("no token for the Hub found; run `hf auth login`, or set HF_TOKEN")
        self.name, self.api = name, HfApi(token=token)
        with explained(name):
            self.api.create_repo(name, private=private or None, exist_ok=True)
            if private and not self.api.model_info(name).private:
                raise PublishError(
                    f"{name}: a public repository found, a private one asked for; make it private at its "
                    "settings on the Hub, or choose another name"
                )

    def head(self) -> str:
        with explained(self.name):
            return str(self.api.model_info(self.name).sha)

    def tagged(self, tag: str) -> str | None:
        """The commit of a tag, None where there is none."""
        with explained(self.name):
            tags = self.api.list_repo_refs(self.name).tags
        return next((found.target_commit for found in tags if found.name == tag), None)

    def tree(self, commit: str) -> dict[str, RepoFile]:
        with explained(self.name):
            listed = self.api.list_repo_tree(self.name, recursive=True, revision=commit)
            return {item.path: item for item in listed if isinstance(item, RepoFile) and item.path != KEPT}

    def fetch(self, file: str, commit: str, folder: Path) -> None:
        with explained(self.name):
            self.api.hf_hub_download(self.name, file, revision=commit, local_dir=folder)

    def commit(self, files: Mapping[str, LocalFile], removed: list[str], message: str, parent: str) -> str:
        """One commit on main that adds `files` and removes others; nothing if main is not at `parent`."""
        adds = [CommitOperationAdd(name, local.path) for name, local in files.items()]
        deletes = [CommitOperationDelete(name, is_folder=False) for name in removed]
        with explained(self.name):
            done = self.api.create_commit(
                self.name, [*adds, *deletes], commit_message=message, parent_commit=parent
            )
        return done.oid

    def tag(self, tag: str, commit: str) -> None:
        with explained(self.name):
            self.api.create_tag(self.name, tag=tag, revision=commit)


def differing(files: Mapping[str, LocalFile], tree: Mapping[str, RepoFile]) -> list[str]:
    """Names of local files that the Hub's tree lacks or has with other contents."""
    return [name for name, file in sorted(files.items()) if name not in tree or not _same(file, tree[name])]


def _same(local: LocalFile, remote: RepoFile) -> bool:
    """By size first, then by the id that the Hub has: a sha256 of a large file, git's id of another."""
    if local.file.size != remote.size:
        return False
    if remote.lfs is not None:
        return local.file.sha256 == remote.lfs.sha256
    data = local.path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == remote.blob_id
