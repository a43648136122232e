"""Servers to talk to: `pi05 serve` in a process of its own, or a policy of the test's own in a thread."""

import asyncio
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from websockets.sync.client import ClientConnection, connect

from pi05_runtime import golden
from pi05_runtime.manifest import read_manifest
from pi05_runtime.serve.keys import Keys
from pi05_runtime.serve.server import PolicyServer
from pi05_runtime.serve.wire import pack, unpack

T = TypeVar("T")
OPENPI_CLIENT = "openpi-client==0.1.2"
NEEDS = (
    "msgpack",
    "numpy<2; python_version<'3.13'",
    "numpy; python_version>='3.13'",
    "pillow",
    "typing_extensions",
    "websockets",
)
"""What its websocket client imports: dm-tree, which it declares, it does not; typing_extensions it does."""
ROBOT = Path(__file__).with_name("openpi_robot.py")
LISTENS = re.compile(r"ws://127\.0\.0\.1:(\d+)")
HOST = "127.0.0.1"
STEPS = 2


def install_openpi_client(folder: Path) -> Path:
    """A Python with openpi-client; fails where no package index can be reached."""
    python = folder / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    for packages in (("--no-deps", OPENPI_CLIENT), NEEDS):
        install = [python, "-m", "pip", "install", "--quiet", *packages]
        done = subprocess.run(install, capture_output=True, text=True)
        assert done.returncode == 0, f"{packages} cannot be installed: {done.stderr}"
    return python


def ask_with_openpi(
    python: Path, port: int, observation: dict[str, Any], count: int, file: Path
) -> "subprocess.CompletedProcess[str]":
    """Runs openpi_robot.py. observation: flat; written to `file`."""
    np.savez(file, **observation)
    command = [python, ROBOT, HOST, port, count, file]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


def _hear_signals() -> None:
    """Also where the tests run under nohup, or behind a shell's &, which would be heeded."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


class Served(NamedTuple):
    process: subprocess.Popen[str]
    port: int
    log: Path

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()

    def new_lines(self, before: int) -> list[str]:
        """What the log has after so many lines, once it has more: a robot may be gone before its line is."""
        for _ in range(600):
            if len(self.lines()) > before:
                break
            time.sleep(0.1)
        return self.lines()[before:]


@contextmanager
def pi05_serve(log: Path, *arguments: object) -> Generator[Served]:
    """`pi05 serve` on a free port; killed at the end if it still runs."""
    pi05 = Path(sys.executable).with_name("pi05")
    command = [pi05, "serve", "--port", "0", "--deadline-ms", "60000", *map(str, arguments)]
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, preexec_fn=_hear_signals
        )
    try:
        assert process.stdout is not None
        listens = LISTENS.search(line := process.stdout.readline())
        assert listens, f"{line!r} printed: {log.read_text()}"
        yield Served(process, int(listens[1]), log)
    finally:
        process.kill()
        process.communicate()


class StandIn:
    """A policy with a bundle's manifest, and the test's own idea of deciding."""

    recipes = frozenset({"bf16"})
    steps = 1

    def __init__(self, bundle: Path, infer: Callable[[dict[str, Any]], dict[str, Any]] | None = None) -> None:
        self.manifest, self.identity = read_manifest(bundle), dict[str, str]()
        interface = self.manifest.interface
        actions = np.zeros((interface.horizon, interface.action_dims), np.float32)
        self.infer = infer or (lambda _: {"actions": actions, "timings": {"total": 0.0}})

    def server(self, deadline_ms: float = 60_000, maps: Sequence[str] = ()) -> PolicyServer:
        return PolicyServer(self, Keys(self.manifest.interface, maps), deadline_ms)  # type: ignore[arg-type]


def in_a_thread(server: PolicyServer) -> AbstractContextManager[int]:
    """The port that it listens on."""
    return held_in_a_thread(lambda: server.listening(HOST, 0))


@contextmanager
def held_in_a_thread(listening: Callable[[], AbstractAsyncContextManager[T]]) -> Generator[T]:
    """What `listening` gives, in the loop of a thread of its own."""
    loop = asyncio.new_event_loop()
    given: list[T] = []
    started = threading.Event()
    ended = asyncio.Event()

    async def listen() -> None:
        async with listening() as one:
            given.append(one)
            started.set()
            await ended.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(listen(),))
    thread.start()
    try:
        assert started.wait(60)
        yield given[0]
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
        loop.close()


def robot(port: int) -> ClientConnection:
    """Connected as openpi-client connects."""
    return connect(f"ws://{HOST}:{port}", compression=None, max_size=None)


def decided(connection: ClientConnection, observation: object) -> dict[str, Any]:
    """One request on a connection whose metadata have been read."""
    connection.send(pack(observation))
    answer = connection.recv()
    assert isinstance(answer, bytes), answer
    return unpack(answer)


def sample(bundle: Path) -> dict[str, Any]:
    """The golden observation, with its noise."""
    manifest = read_manifest(bundle)
    return golden.observation(bundle, manifest.golden.file, manifest.golden.prompt)[0]
