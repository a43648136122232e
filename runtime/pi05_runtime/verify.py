"""Files against the manifest, before anything of them is parsed.

An engine is a program: nothing is loaded until every file that its target names has its size and
hash. A partial tree is fine, since a device holds one target only; a missing named file is not.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from pi05_runtime.errors import BundleError, TargetError
from pi05_runtime.manifest import Manifest, TargetFiles

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


def verify(bundle: Path, manifest: Manifest, files: Iterable[str]) -> None:
    """Checks path, size and sha256 of `files`. Errors: BundleError naming file, found and expected."""
    names = sorted(files)
    for name in names:
        _check_size(bundle, manifest, name)
    total = sum(manifest.files[name].size for name in names)
    with tqdm(total=total, desc="verify", unit="B", unit_scale=True, disable=total < QUIET_BYTES) as bar:
        for name in names:
            with (bundle / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != (expected := manifest.files[name].sha256):
                raise BundleError(
                    f"{bundle / name}: sha256 {found} found, {expected} expected: the file was damaged or "
                    "changed after the bundle was made; pull it again"
                )
            bar.update(manifest.files[name].size)


def _check_size(bundle: Path, manifest: Manifest, name: str) -> None:
    path = PurePosixPath(name)
    if name not in manifest.files or path.is_absolute() or ".." in path.parts:
        raise BundleError(f"{bundle}: the manifest names {name!r}, which is not a file of the bundle")
    file = bundle / name
    if file.is_symlink() or not file.is_file():
        raise BundleError(f"{file}: not found as a regular file; pull the bundle again")
    if (found := file.stat().st_size) != (expected := manifest.files[name].size):
        raise BundleError(f"{file}: {found} bytes found, {expected} expected; pull the bundle again")
