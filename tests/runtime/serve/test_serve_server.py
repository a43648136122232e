"""One robot at a time, deadlines, robots that vanish, faults of the policy, and how a server ends."""

import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from pi05_runtime.errors import EngineError
from pi05_runtime.serve import server as server_module
from tests.pipeline import TARGET
from tests.runtime.serve.serving import HOST, StandIn, decided, in_a_thread, pi05_serve, robot, sample


@pytest.fixture(scope="module")
def good(bundled: Path) -> dict[str, Any]:
    return sample(bundled)


class Slow:
    """A policy whose decision ends when the test says so."""

    def __init__(self, bundle: Path) -> None:
        self.begun, self.end = threading.Event(), threading.Event()
        self.policy = StandIn(bundle, self.infer)
        self._result = StandIn(bundle).infer({})

    def infer(self, _: dict[str, Any]) -> dict[str, Any]:
        self.begun.set()
        assert self.end.wait(60)
        return dict(self._result)


@pytest.fixture
def slow(bundled: Path) -> Iterator[Slow]:
    slow = Slow(bundled)
    yield slow
    slow.end.set()


def health(port: int) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/healthz", timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def answer_and_close(connection: Any) -> tuple[str, int]:
    """The text of an error, and the code that follows it."""
    with pytest.raises(ConnectionClosed) as closed:
        text = connection.recv(timeout=60)
        connection.recv(timeout=60)
    assert closed.value.rcvd is not None
    return text, closed.value.rcvd.code


def test_a_second_robot_is_refused_at_once(bundled: Path, good: dict[str, Any]) -> None:
    with in_a_thread(StandIn(bundled).server()) as port:
        with robot(port) as first:
            first.recv()
            with pytest.raises(InvalidStatus, match="HTTP 503") as refused:
                robot(port)
            assert b"one robot at a time; try again later" in refused.value.response.body
            assert not decided(first, good)["actions"].any()
            assert health(port) == (200, "OK\n")
        for _ in range(50):
            with robot(port) as next_one:
                next_one.recv()


def test_healthz_while_a_decision_is_under_way(bundled: Path, slow: Slow, good: dict[str, Any]) -> None:
    with in_a_thread(slow.policy.server()) as port, robot(port) as connection:
        connection.recv(timeout=60)
        thread = threading.Thread(target=decided, args=(connection, good))
        thread.start()
        assert slow.begun.wait(60)
        assert health(port) == (200, "OK\n")
        slow.end.set()
        thread.join()


def test_a_late_decision_is_an_error_and_its_robot_is_told_at_once(
    bundled: Path, slow: Slow, good: dict[str, Any]
) -> None:
    with in_a_thread(slow.policy.server(deadline_ms=1000)) as port:
        with robot(port) as connection:
            connection.recv()
            connection.send(server_module.pack(good))
            text, code = answer_and_close(connection)
        assert code == 1011 and not slow.end.is_set()
        assert text.startswith("deadline: no decision after 1000 ms") and "--deadline-ms" in text
        assert health(port) == (503, "a decision is past its deadline\n")
        with pytest.raises(InvalidStatus, match="HTTP 503"):
            robot(port)
        slow.end.set()
        with connect_when_free(port) as connection:
            connection.recv()
            assert decided(connection, good)["server_timing"].keys() == {"infer_ms"}
        assert health(port) == (200, "OK\n")


def connect_when_free(port: int) -> Any:
    for _ in range(600):
        try:
            return robot(port)
        except InvalidStatus:
            time.sleep(0.05)
    raise AssertionError("the place of the late robot is not free")


def test_a_robot_that_is_gone_when_its_decision_ends(bundled: Path, slow: Slow, good: dict[str, Any]) -> None:
    with in_a_thread(slow.policy.server()) as port:
        connection = robot(port)
        connection.recv(timeout=60)
        connection.send(server_module.pack(good))
        assert slow.begun.wait(60)
        connection.socket.close()
        slow.end.set()
        with connect_when_free(port) as connection:
            connection.recv()
            assert "actions" in decided(connection, good)


@pytest.mark.parametrize("sent", [b"", b"\x82\xfe\xff\xff"], ids=["nothing", "half of a frame"])
def test_a_robot_that_says_nothing_more(bundled: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    """As after a loss of power: the connection is open, and nobody answers a ping."""
    monkeypatch.setattr(server_module, "PING_S", 0.1)
    monkeypatch.setattr(server_module, "PONG_S", 1)
    with in_a_thread(StandIn(bundled).server()) as port:
        silent = connect(f"ws://{HOST}:{port}", compression=None, max_queue=1, ping_interval=None)
        silent.recv()
        silent.socket.sendall(sent)
        stop_reading(silent)
        with connect_when_free(port) as connection:
            connection.recv()
        silent.socket.close()


def stop_reading(connection: Any) -> None:
    """Its thread goes on receiving, and answers nothing."""
    connection.protocol.receive_data = lambda _: None
    connection.protocol.receive_eof = lambda: None


def test_a_fault_of_an_engine_is_told_as_it_is(bundled: Path, good: dict[str, Any]) -> None:
    def infer(_: dict[str, Any]) -> dict[str, Any]:
        raise EngineError("denoise: x_next has 3 non-finite numbers")

    with in_a_thread(StandIn(bundled, infer).server()) as port, robot(port) as connection:
        connection.recv(timeout=60)
        connection.send(server_module.pack(good))
        assert answer_and_close(connection) == ("denoise: x_next has 3 non-finite numbers", 1011)


def test_any_other_fault_is_told_without_its_paths(
    bundled: Path, good: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    def infer(_: dict[str, Any]) -> dict[str, Any]:
        raise OSError("/home/robot/secret")

    with in_a_thread(StandIn(bundled, infer).server()) as port:
        for _ in range(2):
            with robot(port) as connection:
                connection.recv()
                connection.send(server_module.pack(good))
                text, code = answer_and_close(connection)
            assert (text, code) == ("the server failed on this observation; its log says how", 1011)
    assert "/home/robot/secret" in caplog.text, "the log has it"


def test_a_message_has_a_limit(bundled: Path) -> None:
    with in_a_thread(StandIn(bundled).server()) as port, robot(port) as connection:
        connection.recv(timeout=60)
        connection.send(server_module.pack({f"{i}\n{'x' * 1000}": i for i in range(1000)}))
        text, _ = answer_and_close(connection)
    assert len(text) == server_module.MAX_MESSAGE + 4 and "\n" not in text


def test_a_web_page_is_no_robot(bundled: Path) -> None:
    with (
        in_a_thread(StandIn(bundled).server()) as port,
        pytest.raises(InvalidStatus, match="HTTP 403"),
    ):
        connect(f"ws://{HOST}:{port}", origin="http://evil.example")  # type: ignore[arg-type]


def test_the_largest_frame_follows_from_the_cameras(bundled: Path) -> None:
    server = StandIn(bundled).server()
    assert 2 * 3 * 2048 * 2048 < server.frame_limit < 2 * 3 * 2048 * 2100


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_and_tells_the_robot(
    bundled: Path, good: dict[str, Any], tmp_path: Path, number: signal.Signals
) -> None:
    flags = ("--target", TARGET, "--steps", 1)
    with pi05_serve(tmp_path / "log", bundled, *flags) as served, robot(served.port) as connection:
        connection.recv(timeout=60)
        decided(connection, good)
        served.process.send_signal(number)
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(timeout=60)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1001
        assert served.process.wait(60) == 128 + number
        (line,) = served.lines()
        assert "had 1 answers" in line and "then 1001" in line
