"""What the loopback Hub keeps on disk: contents by sha256, and each repository's commits, branches and tags.

As on the Hub, a large or binary file is an LFS object, known by its sha256, and any other a git blob.
"""

import fnmatch
import hashlib
import threading
from collections.abc import Iterable
from pathlib import Path

import msgspec

LFS_BYTES = 10 << 20
LFS_PATTERNS = ("*.bin", "*.model", "*.onnx", "*.safetensors")
ATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS)
"""The Hub puts a longer list of the kind into each new repository."""


class HubError(Exception):
    """An answer other than success. code: the Hub's name of it, in a header. retry_after: seconds."""

    def __init__(self, status: int, message: str, code: str = "", retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.retry_after = status, code, retry_after


class Entry(msgspec.Struct, frozen=True):
    """A file of a commit. git: its blob's id, of an LFS object that of the pointer."""

    sha256: str
    git: str
    size: int
    lfs: bool

    @property
    def oid(self) -> str:
        return self.sha256 if self.lfs else self.git


Tree = dict[str, Entry]


class Repo(msgspec.Struct):
    private: bool
    commits: dict[str, Tree] = {}
    branches: dict[str, str] = {}
    tags: dict[str, str] = {}


def is_lfs(name: str, size: int, sample: bytes) -> bool:
    matches = any(fnmatch.fnmatch(name, pattern) for pattern in LFS_PATTERNS)
    return matches or size > LFS_BYTES or b"\0" in sample


def git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def git_pointer(sha256: str, size: int) -> str:
    version = "https://git-lfs.github.com/spec/v1"
    return git_blob(f"version {version}\noid sha256:{sha256}\nsize {size}\n".encode())


class Store:
    """Repositories below a folder; another Store over the same folder sees the same."""

    def __init__(self, folder: Path) -> None:
        self.blobs, self.repos = folder / "blobs", folder / "repos"
        self.blobs.mkdir(parents=True, exist_ok=True)
        self.lock = threading.RLock()

    def create(self, name: str, private: bool) -> None:
        with self.lock:
            if self._file(name).exists():
                raise HubError(409, "You already created this model repo")
            self.write(name, Repo(private))
            self.commit(name, "main", {".gitattributes": self.put(ATTRIBUTES.encode())}, "initial commit")

    def read(self, name: str) -> Repo:
        try:
            return msgspec.json.decode(self._file(name).read_bytes(), type=Repo)
        except OSError:
            raise HubError(404, "Repository not found", "RepoNotFound") from None

    def is_public(self, name: str) -> bool:
        return self._file(name).exists() and not self.read(name).private

    def write(self, name: str, repo: Repo) -> None:
        path = self._file(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".partial")
        temporary.write_bytes(msgspec.json.encode(repo))
        temporary.rename(path)

    def resolve(self, name: str, revision: str) -> str:
        """The commit that a branch, a tag or the commit itself names."""
        repo = self.read(name)
        commit = repo.branches.get(revision) or repo.tags.get(revision) or revision
        if commit not in repo.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def tree(self, name: str, revision: str) -> Tree:
        return self.read(name).commits[self.resolve(name, revision)]

    def entry(self, name: str, revision: str, path: str) -> Entry:
        if entry := self.tree(name, revision).get(path):
            return entry
        raise HubError(404, f"{path} does not exist on {revision!r}", "EntryNotFound")

    def commit(self, name: str, branch: str, tree: Tree, summary: str) -> str:
        repo = self.read(name)
        parent = repo.branches.get(branch)
        what = msgspec.json.encode([parent, tree, summary, len(repo.commits)])
        commit = hashlib.sha1(what).hexdigest()
        repo.commits[commit] = tree
        repo.branches[branch] = commit
        self.write(name, repo)
        return commit

    def tag(self, name: str, tag: str, revision: str) -> None:
        with self.lock:
            repo, commit = self.read(name), self.resolve(name, revision)
            if tag in repo.tags:
                raise HubError(409, "Tag reference exists already")
            repo.tags[tag] = commit
            self.write(name, repo)

    def blob(self, sha256: str) -> Path:
        return self.blobs / sha256

    def put(self, data: bytes) -> Entry:
        """Stores a regular file."""
        sha256 = hashlib.sha256(data).hexdigest()
        self.blob(sha256).write_bytes(data)
        return Entry(sha256, git_blob(data), len(data), lfs=False)

    def put_lfs(self, sha256: str, blocks: Iterable[bytes]) -> None:
        """Stores an LFS object of that name, if that is what it is."""
        temporary = self.blobs / f"{sha256}.{threading.get_ident()}.partial"
        digest = hashlib.sha256()
        try:
            with temporary.open("wb") as file:
                for block in blocks:
                    digest.update(block)
                    file.write(block)
            if digest.hexdigest() != sha256:
                raise HubError(400, "sha256 of the body differs from the object's name")
            temporary.rename(self.blob(sha256))
        finally:
            temporary.unlink(missing_ok=True)

    def lfs_entry(self, sha256: str) -> Entry:
        if not self.blob(sha256).exists():
            raise HubError(400, f"LFS object {sha256} was never uploaded")
        size = self.blob(sha256).stat().st_size
        return Entry(sha256, git_pointer(sha256, size), size, lfs=True)

    def _file(self, name: str) -> Path:
        return self.repos / f"{name}.json"
