"""A Hub on loopback: what huggingface_hub and a plain HTTP client ask of the real one, and its bad days.

No package has a Hub that can be pushed to. This one answers the calls that create_commit, upload_folder,
snapshot_download and create_tag make, in the forms in which the Hub answers them: a small file through a
relative redirect, an LFS object through a redirect to another host, whose ETag is not the file's and which
refuses a token. Uploads of single objects only; no xet, no pull requests.
"""

import base64
import json
import re
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from tests.hub.faults import Overtake
from tests.hub.store import Entry, HubError, is_lfs
from tests.hub.wire import BLOCK, Handler, Hub, Server

WRITER, READER = "hf_writer", "hf_reader"
"""Tokens: the first may do everything, the second only read."""


@contextmanager
def serve(folder: Path) -> Generator[Hub]:
    """A Hub over `folder` on a free port, until the block ends."""
    server = Server(folder, Api)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Api(Handler):
    """In the order in which a publisher and then a puller ask."""

    def route(self, line: str) -> None:
        for pattern, method in ROUTES:
            if found := re.fullmatch(pattern, line):
                named = found.groupdict()
                self._authorize(named.get("repo"))
                method(self, **named)
                return
        raise HubError(404, f"no route for {line}")

    def whoami(self) -> None:
        self.answer({"type": "user", "name": "acme", "orgs": [], "auth": {"type": "access_token"}})

    def create(self) -> None:
        asked = self.load()
        name = f"{asked.get('organization') or 'acme'}/{asked['name']}"
        private = bool(asked.get("private") or asked.get("visibility") == "private")
        try:
            self.store.create(name, private)
        except HubError as error:
            self.answer({"error": str(error), "url": f"{self.hub.url}/{name}"}, error.status)
        else:
            self.answer({"url": f"{self.hub.url}/{name}", "name": name})

    def validate_yaml(self) -> None:
        self.load()
        self.answer({"errors": [], "warnings": []})

    def preupload(self, repo: str, rev: str) -> None:
        tree, answers = self.store.tree(repo, rev), []
        for file in self.load()["files"]:
            lfs = is_lfs(file["path"], file["size"], base64.b64decode(file["sample"]))
            answer = {"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            if file["path"] in tree:
                answer["oid"] = tree[file["path"]].oid
            answers.append(answer)
        self.answer({"files": answers})

    def lfs_batch(self, repo: str) -> None:
        objects = []
        for asked in self.load()["objects"]:
            answer = {"oid": asked["oid"], "size": asked["size"]}
            if not self.store.blob(asked["oid"]).exists():
                upload = {"href": f"{self._other_host()}/upload/{repo}/{asked['oid']}"}
                answer["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.url}/{repo}/verify"}}
            objects.append(answer)
        self.answer({"transfer": "basic", "objects": objects})

    def upload(self, sha256: str) -> None:
        self.store.put_lfs(sha256, iter(lambda: self.read(BLOCK), b""))
        self.start(200, 0, {})

    def verify(self, repo: str) -> None:
        self.store.lfs_entry(self.load()["oid"])
        self.answer({})

    def commit(self, repo: str, rev: str) -> None:
        header, *operations = map(json.loads, self.read().splitlines())
        with self.store.lock:
            tree = dict(self.store.tree(repo, rev))
            if self.hub.take(Overtake, self.asked.line):
                theirs = tree | {"theirs.txt": self.store.put(b"theirs")}
                self.store.commit(repo, rev, theirs, "somebody else's")
            parent = header["value"].get("parentCommit")
            if parent not in (None, self.store.resolve(repo, rev)):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            for operation in operations:
                self._apply(tree, operation["key"], operation["value"])
            commit = self.store.commit(repo, rev, tree, header["value"]["summary"])
        url = f"{self.hub.url}/{repo}/commit/{commit}"
        self.answer({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

    def _apply(self, tree: dict[str, Entry], key: str, value: dict[str, Any]) -> None:
        path = value["path"]
        if key == "file":
            tree[path] = self.store.put(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            tree[path] = self.store.lfs_entry(value["oid"])
        elif key == "deletedFile" and path in tree:
            del tree[path]
        else:
            raise HubError(400, f"{key} of {path} is not possible here")

    def tag(self, repo: str, rev: str) -> None:
        self.store.tag(repo, self.load()["tag"], rev)
        self.answer({})

    def info(self, repo: str, rev: str = "main") -> None:
        commit = self.store.resolve(repo, rev)
        files = []
        for path, entry in sorted(self.store.tree(repo, commit).items()):
            file: dict[str, Any] = {"rfilename": path}
            if "blobs" in self.query:
                file |= {"size": entry.size, "blobId": entry.git}
                if entry.lfs:
                    file["lfs"] = {"sha256": entry.sha256, "size": entry.size, "pointerSize": 134}
            files.append(file)
        private = self.store.read(repo).private
        self.answer({"id": repo, "modelId": repo, "sha": commit, "private": private, "siblings": files})

    def refs(self, repo: str) -> None:
        kept = self.store.read(repo)
        found = {}
        for kind, folder, refs in (("branches", "heads", kept.branches), ("tags", "tags", kept.tags)):
            found[kind] = [
                {"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": commit}
                for name, commit in refs.items()
            ]
        self.answer({**found, "converts": []})

    def tree(self, repo: str, rev: str) -> None:
        if self.query.get("recursive", "").lower() != "true":
            raise HubError(400, "only recursive listings are made here")
        everything = sorted(self.store.tree(repo, rev).items())
        start = int(self.query.get("cursor", 0))
        listed = []
        for path, entry in everything[start : start + self.hub.page]:
            item: dict[str, Any] = {"type": "file", "path": path, "size": entry.size, "oid": entry.git}
            if entry.lfs:
                item["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": 134}
            listed.append(item)
        following = start + self.hub.page
        headers = {}
        if following < len(everything):
            page = f"{self.hub.url}{urlsplit(self.path).path}?recursive=true&cursor={following}"
            headers["Link"] = f'<{page}>; rel="next"'
        self.answer(listed, headers=headers)

    def resolve(self, repo: str, rev: str, path: str) -> None:
        """Says where the file is, and what it is; the bytes come from there."""
        commit = self.store.resolve(repo, rev)
        entry = self.store.entry(repo, commit, path)
        headers = {
            "X-Repo-Commit": commit,
            "X-Linked-Size": str(entry.size),
            "X-Linked-ETag": f'"{entry.oid}"',
            "Accept-Ranges": "bytes",
        }
        if entry.lfs:
            place = f"{self._other_host()}/cdn/{entry.sha256}/{quote(path)}?Signature=test"
            self.start(302, 0, {**headers, "Location": place})
        else:
            place = f"/api/resolve-cache/models/{repo}/{commit}/{quote(path)}"
            self.start(307, 0, {**headers, "Location": place})

    def small_file(self, repo: str, rev: str, path: str) -> None:
        entry = self.store.entry(repo, rev, path)
        self.send_file(self.store.blob(entry.sha256), {"X-Repo-Commit": rev, "ETag": f'"{entry.git}"'})

    def large_file(self, sha256: str, path: str) -> None:
        """From storage that knows objects and no repositories; its ETag is a hash of its own."""
        self.send_file(self.store.blob(sha256), {"ETag": f'"{sha256[::-1]}"'})

    def _authorize(self, repo: str | None) -> None:
        """Without a token, a private repository and one that is not there look the same."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if self.path.startswith(("/cdn/", "/upload/")):
            if token:
                raise HubError(400, "Only one auth mechanism allowed: the URL is signed, no token expected")
            return
        if token not in ("", WRITER, READER):
            raise HubError(401, "Invalid credentials in Authorization header")
        if not token and repo is not None and not self.store.is_public(repo):
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        if self.command == "POST" and not token:
            raise HubError(401, "Invalid username or password.")
        if self.command == "POST" and token == READER:
            raise HubError(403, "Forbidden: you must use a write token to write to this repository.")

    def _other_host(self) -> str:
        """Another name of this machine: to a client another host, which is to get no token."""
        return self.hub.url.replace("127.0.0.1", "localhost")


REPO, REV, PATH, SHA256 = (
    r"(?P<repo>[^/]+/[^/]+)",
    r"(?P<rev>[^/]+)",
    r"(?P<path>.+)",
    r"(?P<sha256>[0-9a-f]{64})",
)
MODEL = f"/api/models/{REPO}"
ROUTES: tuple[tuple[str, Callable[..., None]], ...] = (
    ("GET /api/whoami-v2", Api.whoami),
    ("POST /api/repos/create", Api.create),
    ("POST /api/validate-yaml", Api.validate_yaml),
    (f"POST {MODEL}/preupload/{REV}", Api.preupload),
    (rf"POST /{REPO}\.git/info/lfs/objects/batch", Api.lfs_batch),
    (f"PUT /upload/[^/]+/[^/]+/{SHA256}", Api.upload),
    (f"POST /{REPO}/verify", Api.verify),
    (f"POST {MODEL}/commit/{REV}", Api.commit),
    (f"POST {MODEL}/tag/{REV}", Api.tag),
    (f"GET {MODEL}", Api.info),
    (f"GET {MODEL}/revision/{REV}", Api.info),
    (f"GET {MODEL}/refs", Api.refs),
    (f"GET {MODEL}/tree/{REV}", Api.tree),
    (f"(?:GET|HEAD) /{REPO}/resolve/{REV}/{PATH}", Api.resolve),
    (f"(?:GET|HEAD) /api/resolve-cache/models/{REPO}/{REV}/{PATH}", Api.small_file),
    (f"(?:GET|HEAD) /cdn/{SHA256}/{PATH}", Api.large_file),
)
