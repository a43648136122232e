"""Runs `pi05` in processes that are killed, or whose disk fills up, at a chosen change to the disk.

A process that has imported everything forks a child for each command, so that a fate costs milliseconds and
the audit events that the child's interpreter raises are the command's own: audit hooks see every change.
"""

import errno
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, NoReturn

import msgspec

from tests.pipeline import ROOT

Fate = Literal["none", "killed", "killed after seconds", "disk full", "files limited", "logged"]
CHANGING = {"os.mkdir", "os.link", "os.rename", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree"}


class Asked(msgspec.Struct):
    """A command, and what happens to it.

    at: the number of the change before which it dies, 1 for the first; a file that is opened to be written
    counts twice, before it is opened and when it is empty. Or that of the change from which on nothing more
    fits on the disk; or seconds; or the most bytes of a file.
    """

    root: str
    arguments: list[str]
    environment: dict[str, str]
    fate: Fate = "none"
    at: float = 0


class Ended(msgspec.Struct):
    """code: as of subprocess, negative for a signal. log: of the changes and fsyncs, [event, path, ...]."""

    code: int
    output: str
    log: list[list[str]]


class Runner:
    """The asking side."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def pi05(self, root: Path, *arguments: str, fate: Fate = "none", at: float = 0) -> Ended:
        """`pi05 <arguments>` with the bundles below `root`, and this process's environment."""
        asked = Asked(str(root), list(arguments), dict(os.environ), fate, at)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(asked) + b"\n")
        self._process.stdin.flush()
        return msgspec.json.decode(self._process.stdout.readline(), type=Ended)


@contextmanager
def runner() -> Generator[Runner]:
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'runtime'}:{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "tests.runtime.device.fates"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, cwd=ROOT) as process:
        yield Runner(process)
        process.communicate()


def changed(event: str, arguments: tuple[Any, ...], root: str) -> bool:
    """Whether an audit event is a change in the store. rmtree names files relative to an open folder."""
    writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if not (writing or event in CHANGING) or isinstance(arguments[0], int):
        return False
    path = os.fsdecode(arguments[0])
    there_already = event == "os.mkdir" and os.path.isdir(path)
    return (path.startswith(root) or not path.startswith("/")) and not there_already


def grows(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether a change takes space: a full disk lets one open a file that is there."""
    return event in ("os.mkdir", "os.link") or (event == "open" and not os.path.exists(arguments[0]))


def meet(asked: Asked, log: IO[bytes]) -> None:
    """Arranges this process's fate. What an audit hook raises, the audited call raises."""
    count = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if not changed(event, arguments, asked.root):
            return
        count += 1
        if asked.fate == "killed" and count == asked.at:
            os.kill(os.getpid(), signal.SIGKILL)
        if asked.fate == "killed" and event == "open":
            count += 1
            if count == asked.at:
                os.open(arguments[0], arguments[2])
                os.kill(os.getpid(), signal.SIGKILL)
        if asked.fate == "disk full" and count >= asked.at and grows(event, arguments):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fsdecode(arguments[0]))
        if asked.fate == "logged":
            paths = [os.fsdecode(a) for a in arguments if isinstance(a, str | os.PathLike)]
            os.write(log.fileno(), msgspec.json.encode([event, *paths]) + b"\n")

    def fsync(descriptor: int, original=os.fsync) -> None:
        original(descriptor)
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        os.write(log.fileno(), msgspec.json.encode(["fsync", path]) + b"\n")

    if asked.fate == "files limited":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(asked.at), int(asked.at)))
    if asked.fate == "logged":
        os.fsync = fsync
    sys.addaudithook(watch)


def be_pi05(asked: Asked, output: IO[bytes], log: IO[bytes]) -> NoReturn:
    from pi05_runtime import cli

    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    os.environ.clear()
    os.environ.update(asked.environment)
    sys.argv = ["pi05", *asked.arguments, "--root", asked.root]
    code: Any = 0
    try:
        meet(asked, log)
        cli.main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 120
    sys.stdout.flush()
    os._exit(code)


def main() -> None:
    import pi05_runtime.cli  # noqa: F401  before the forks

    for line in sys.stdin.buffer:
        asked = msgspec.json.decode(line, type=Asked)
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as log:
            if (child := os.fork()) == 0:
                be_pi05(asked, output, log)
            if asked.fate == "killed after seconds":
                time.sleep(asked.at)
                os.kill(child, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            output.seek(0)
            log.seek(0)
            entries = [msgspec.json.decode(entry) for entry in log]
            ended = Ended(code, output.read().decode(), entries)
        sys.stdout.buffer.write(msgspec.json.encode(ended) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
