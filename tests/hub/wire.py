"""One HTTP request of the loopback Hub: counted, subject to faults, and answered with JSON or a file."""

import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub.faults import Corrupt, Cut, Fault, Refuse
from tests.hub.store import HubError, Store

BLOCK = 1 << 16
F = TypeVar("F", bound=Fault)


@dataclass
class Request:
    """One request as the server saw it. sent, received: bytes of the two bodies that really went."""

    line: str
    status: int = 0
    sent: int = 0
    received: int = 0


@dataclass
class Hub:
    """A running server. page: entries of a tree that one answer lists."""

    url: str
    store: Store
    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    page: int = 1000

    def sent(self, where: str = "") -> int:
        """Body bytes of the answers to requests whose "METHOD /path" `where` is found in."""
        return sum(request.sent for request in self.asked(where))

    def received(self, where: str = "") -> int:
        return sum(request.received for request in self.asked(where))

    def asked(self, where: str = "") -> list[Request]:
        return [request for request in self.requests if re.search(where, request.line)]

    def take(self, kind: type[F], line: str) -> F | None:
        """The first fault of that kind that is due on this request, used up by one."""
        with self.store.lock:
            for fault in self.faults:
                if isinstance(fault, kind) and fault.times and re.search(fault.where, line):
                    fault.times -= 1
                    return fault
        return None


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.hub = Hub(f"http://127.0.0.1:{self.server_port}", Store(folder))


class CutOff(Exception):
    """The connection is to end here."""


class Handler(BaseHTTPRequestHandler):
    """Reads a request and hands it to `route`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def route(self, line: str) -> None:
        """Answers the request "METHOD /path". Errors: HubError, which is answered too."""
        raise NotImplementedError

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def dispatch(self) -> None:
        assert isinstance(self.server, Server)
        self.hub, self.store = self.server.hub, self.server.hub.store
        url = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.asked = Request(f"{self.command} {unquote(url.path)}")
        self.hub.requests.append(self.asked)
        self.left = int(self.headers.get("Content-Length") or 0)
        self.cut = self.hub.take(Cut, self.asked.line) if self.left else None
        try:
            if fault := self.hub.take(Refuse, self.asked.line):
                raise HubError(fault.status, "refused for a test", retry_after=fault.retry_after)
            self.route(self.asked.line)
        except HubError as error:
            self._refuse(error)
        except (CutOff, ConnectionError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = dispatch

    def read(self, size: int = 1 << 62) -> bytes:
        """Of the request's body, at most as much as is left. Errors: CutOff."""
        size = min(size, self.left)
        if self.cut is not None:
            size = min(size, self.cut.after - self.asked.received)
        data = self.rfile.read(size)
        self.left -= len(data)
        self.asked.received += len(data)
        if self.left and not data:
            raise CutOff
        return data

    def load(self) -> Any:
        return json.loads(self.read())

    def answer(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """JSON."""
        body = json.dumps(value).encode()
        self.start(status, len(body), {"Content-Type": "application/json", **(headers or {})})
        self.send(body)

    def start(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.asked.status = status
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()

    def send(self, data: bytes) -> None:
        if self.command != "HEAD":
            self.asked.sent += len(data)  # first, since a client that has all may look at once
            self.wfile.write(data)

    def send_file(self, path: Path, headers: dict[str, str]) -> None:
        """The file or the range of it that was asked for, with what the faults do to it."""
        size = path.stat().st_size
        start, end, status = 0, size, 200
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(found[1]), min(int(found[2]) + 1, size) if found[2] else size
            if start >= end:
                self.start(416, 0, {"Content-Range": f"bytes */{size}"})
                return
            status, headers["Content-Range"] = 206, f"bytes {start}-{end - 1}/{size}"
        self.start(status, end - start, {**headers, "Accept-Ranges": "bytes"})
        if self.command == "HEAD":
            return
        flip = (start + end) // 2 if self.hub.take(Corrupt, self.asked.line) else None
        cut = self.hub.take(Cut, self.asked.line)
        with path.open("rb") as file:
            file.seek(start)
            while start < end:
                data = file.read(min(BLOCK, end - start))
                if flip is not None and start <= flip < start + len(data):
                    at = flip - start
                    data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
                if cut is not None and self.asked.sent + len(data) >= cut.after:
                    self.send(data[: cut.after - self.asked.sent])
                    raise CutOff
                self.send(data)
                start += len(data)

    def _refuse(self, error: HubError) -> None:
        while self.left:
            self.read(BLOCK)
        headers = {"X-Error-Code": error.code, "X-Error-Message": str(error)}
        if error.retry_after is not None:
            headers["Retry-After"] = str(error.retry_after)
        self.answer({"error": str(error)}, error.status, headers)
