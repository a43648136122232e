"""Being told to end is an ordinary way to end: what was begun is taken back."""

import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager

ENDING = (signal.SIGTERM, signal.SIGHUP)
"""The second is what a dropped connection sends to what ran in it."""


@contextmanager
def ended_by_signals() -> Generator[None]:
    """Inside, SIGTERM and SIGHUP raise SystemExit with 128 + their number, so that temporary files go.

    Only the main thread can do so; in another one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]  # nohup's stay
    before = {number: signal.signal(number, lambda n, _: sys.exit(128 + n)) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
