"""How every stage starts and ends: one exit code an error, and nothing half-written left behind.

A stage reads `params.yaml` and writes below `artifacts/`, both relative to the working directory, so
the same stages run in place, under DVC, in a test's temporary folder and at full size.
"""

import errno
import sys
from collections.abc import Callable
from functools import partial

from tqdm import tqdm

from pi05_runtime.errors import Pi05Error
from pi05_runtime.signals import ended_by_signals

progress = partial(tqdm, disable=None)
"""A progress bar that a log file does not have to hold: shown on a terminal only."""


def run_stage(main: Callable[..., None]) -> None:
    """Runs `main(*arguments)` of a stage module; a known error ends as one line and its exit code."""
    try:
        with ended_by_signals():
            main(*sys.argv[1:])
    except Pi05Error as error:
        sys.exit(_report(str(error), error.exit_code))
    except Exception as error:
        if not disk_is_full(error):
            raise
        sys.exit(_report(f"the disk is full: {error}. Free space, then run the stage again", 1))


def disk_is_full(error: Exception) -> bool:
    """Whether that is what `error` means; safetensors leaves only the text of the system's error."""
    return getattr(error, "errno", None) == errno.ENOSPC or f"(os error {errno.ENOSPC})" in str(error)


def _report(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code
