"""Files against the manifest, before anything of them is parsed.

An engine is a program: nothing is loaded until every file that its target names has its size and
hash. A partial tree is fine, since a device holds one target only; a missing named file is not.
"""

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from pi05_runtime.errors import BundleError, TargetError
from pi05_runtime.manifest import File, Manifest, TargetFiles

COPY = "copy the bundle again"
QUIET_BYTES = 1 << 30
"""Below this much to hash no progress bar is shown."""


def target_files(manifest: Manifest, target: str) -> TargetFiles:
    """The bundle's entry for `target`. Errors: TargetError listing what it has."""
    if target not in manifest.targets:
        raise TargetError(
            f"the bundle {manifest.name} {manifest.version} has no target {target!r}, it has "
            f"{sorted(manifest.targets)}; choose one of these, or add it to `targets` and export again"
        )
    return manifest.targets[target]


def verify(folder: Path, files: Mapping[str, File], names: Iterable[str], advice: str = COPY) -> None:
    """Checks type, size and sha256 of `names`, keys of `files`; sizes first, being quick.

    advice: what to do about a bad file. Errors: BundleError naming file, found and expected.
    """
    names = sorted(names)
    for name in names:
        _check_size(folder, name, files[name].size, advice)
    total = sum(files[name].size for name in names)
    pool = ThreadPoolExecutor()
    # Hashing is most of what loading takes, and leaves the interpreter's lock to others.
    hashed = [pool.submit(hash_file, folder / name) for name in names]
    bar = tqdm(total=total, desc="verify", unit="B", unit_scale=True, disable=total < QUIET_BYTES)
    try:
        for name, hashing in zip(names, hashed, strict=True):
            try:
                found = hashing.result().sha256
            except OSError as error:
                raise BundleError(
                    f"{folder / name}: cannot be read ({error.strerror}); check the disk and the file's "
                    f"permissions, then {advice}"
                ) from error
            if found != (expected := files[name].sha256):
                raise BundleError(
                    f"{folder / name}: sha256 {found} found, {expected} expected: the file was damaged or "
                    f"changed after it was made; {advice}"
                )
            bar.update(files[name].size)
    finally:
        bar.close()
        # Nobody waits for what is still to be hashed behind a bad file.
        pool.shutdown(wait=False, cancel_futures=True)


def hash_file(path: Path) -> File:
    """Size and sha256 of a file. Errors: OSError."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return File(path.stat().st_size, digest)


def _check_size(folder: Path, name: str, expected: int, advice: str) -> None:
    file = folder / name
    if not file.is_file():
        raise BundleError(f"{file}: no file found, one expected; {advice}")
    if (found := file.resolve()) != folder.resolve() / name:
        raise BundleError(
            f"{file}: a symbolic link to {found} found, a regular file expected; {advice}, without links"
        )
    if (found := file.stat().st_size) != expected:
        raise BundleError(f"{file}: {found} bytes found, {expected} expected; {advice}")
