"""How every stage starts and ends: one exit code an error, and nothing half-written left behind.

A stage reads `params.yaml` and writes below `artifacts/`, both relative to the working directory, so
the same stages run in place, under DVC, in a test's temporary folder and at full size.
"""

import errno
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tqdm import tqdm

from pi05_runtime.errors import Pi05Error

progress = partial(tqdm, disable=None)
"""A progress bar that a log file does not have to hold: shown on a terminal only."""


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Yields an empty temporary folder beside `path`, renamed to `path` when the body succeeds.

    When the body fails or the process is told to end, the temporary folder goes and `path` stays as it
    was. The old folder is renamed away before the new one takes its name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        new.mkdir()
        yield new
        if path.exists():
            path.rename(old)
        new.rename(path)


def write_file(path: Path, data: bytes) -> None:
    """Writes `data` under a temporary name and renames it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_bytes(data)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def run_stage(main: Callable[..., None]) -> None:
    """Runs `main(*arguments)` of a stage module; a known error ends as one line and its exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
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
