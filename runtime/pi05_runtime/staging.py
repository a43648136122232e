"""Files and folders that appear whole or not at all."""

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staged(path: Path) -> Generator[Path]:
    """Yields an empty temporary folder beside `path`, renamed to `path` when the body succeeds.

    When the body fails or the process is told to end, the temporary folder goes and `path` stays as it
    was. The old folder is renamed away before the new one takes its name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        new.mkdir()
        yield new
        try:
            if path.exists():
                path.rename(old)
            new.rename(path)
        finally:
            if old.exists() and not path.exists():
                old.rename(path)


def write_file(path: Path, data: bytes) -> None:
    """Writes `data` under a temporary name and renames it to `path`: after a loss of power, too, `path` is
    the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_bytes(data)
        sync(temporary)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Waits until a file's contents, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """`sync` of everything in a folder, of the folder, and of its own name."""
    for path in (*folder.rglob("*"), folder, folder.parent):
        sync(path)
