"""One attempt: the library in a process of its own, which may crash or hang and take nothing along."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import msgspec

from pi05_runtime.build.contract import Done, Refused, Request

WORKER = (sys.executable, "-P", "-m", "pi05_runtime.build.worker")
"""-P: a file in the current folder that has a library's name is not that library."""


def run_attempt(request: Request, minutes: float) -> Done | Refused:
    """The worker's answer, or what became of it: a crash, or the time limit.

    However this ends, by Ctrl-C too, the worker and all that it started are gone.
    """
    process = subprocess.Popen(WORKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    try:
        answer, _ = process.communicate(msgspec.json.encode(request), timeout=minutes * 60)
    except subprocess.TimeoutExpired:
        return Refused(f"time limit of {minutes:g} minutes")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode < 0:
        return Refused(f"exit by signal {-process.returncode}")
    if process.returncode:
        return Refused(f"exit with status {process.returncode}")
    try:
        return msgspec.json.decode(answer, type=Done | Refused)
    except msgspec.DecodeError:
        return Refused("exit without an answer")
