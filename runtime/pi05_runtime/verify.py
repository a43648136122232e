"""Files against the manifest, before anything of them is parsed.

An engine is a program: nothing is loaded until every file that its target names has its size and
hash. A partial tree is fine, since a device holds one target only; a missing named file is not.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

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
    """Checks type, size and sha256 of `files`, names in `manifest.files`; sizes first, being quick.

    Errors: BundleError naming file, found and expected.
    """
    names = sorted(files)
    for name in names:
        _check_size(bundle, manifest, name)
    total = sum(manifest.files[name].size for name in names)
    with tqdm(total=total, desc="verify", unit="B", unit_scale=True, disable=total < QUIET_BYTES) as bar:
        for name in names:
            try:
                with (bundle / name).open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise BundleError(
                    f"{bundle / name}: cannot be read ({error.strerror}); check the disk and the file's "
                    "permissions, then copy the bundle again"
                ) from error
            if found != (expected := manifest.files[name].sha256):
                raise BundleError(
                    f"{bundle / name}: sha256 {found} found, {expected} expected: the file was damaged or "
                    "changed after the bundle was made; copy the bundle again"
                )
            bar.update(manifest.files[name].size)


def _check_size(bundle: Path, manifest: Manifest, name: str) -> None:
    file = bundle / name
    if not file.is_file():
        raise BundleError(f"{file}: no file found, one expected; copy the bundle again")
    if (found := file.resolve()) != bundle.resolve() / name:
        raise BundleError(
            f"{file}: a symbolic link to {found} found, a regular file expected; copy the bundle without "
            "links"
        )
    if (found := file.stat().st_size) != (expected := manifest.files[name].size):
        raise BundleError(f"{file}: {found} bytes found, {expected} expected; copy the bundle again")
