"""A part of the runtime in a process of its own, which may crash or hang and take nothing along.

A request goes in on standard input and an answer comes out on standard output, as JSON. `run_child` is the
side that asks, `serve` the side that answers.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import msgspec

Request = TypeVar("Request")
Answer = TypeVar("Answer")
_PR_SET_PDEATHSIG = 1


class Fault(msgspec.Struct, frozen=True):
    """What the process did instead of giving an answer."""

    text: str


def run_child(
    module: str, request: object, answer: msgspec.json.Decoder[Answer], minutes: float, *, quiet: bool
) -> Answer | Fault:
    """The answer of `module`, which is run with `python -m` and ends in `serve`.

    quiet: what it writes to standard error goes nowhere.
    However this ends, by Ctrl-C too, the process and all that it started are gone.
    """
    process = subprocess.Popen(
        # -P: a file in the current folder that has a library's name is not that library.
        (sys.executable, "-P", "-m", module, str(os.getpid())),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if quiet else None,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(msgspec.json.encode(request), timeout=minutes * 60)
    except subprocess.TimeoutExpired:
        return Fault(f"time limit of {minutes:g} minutes")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode < 0:
        return Fault(f"exit by signal {-process.returncode}")
    if process.returncode:
        return Fault(f"exit with status {process.returncode}")
    try:
        return answer.decode(output)
    except msgspec.DecodeError as error:
        return Fault(f"an answer that cannot be read ({error})")


def serve(request: type[Request], answer: Callable[[Request], object]) -> None:
    """Answers the one request of `run_child`, and ends this process without tearing libraries down.

    What libraries print goes to standard error. The kernel kills this process when the one that asked dies.
    """
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        os._exit(1)
    output.write(msgspec.json.encode(answer(msgspec.json.decode(sys.stdin.buffer.read(), type=request))))
    output.flush()
    os._exit(0)
