"""The record of engines that a device built itself: from which bundle, with what, and how they did."""

import hashlib
from pathlib import Path

import msgspec

from pi05_runtime.errors import BundleError, TargetError
from pi05_runtime.lock import Lock
from pi05_runtime.manifest import FILE, Engine, File
from pi05_runtime.verify import verify

RECORD = "rebuilt.json"


class Score(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The golden sample at one step count, against the BF16 reference."""

    steps: int
    cosine: float
    threshold: float


class Rebuilt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """rebuilt.json. bundle: sha256 of its manifest. engines: as in a manifest, beside this file. golden:
    empty until the engines have passed it."""

    bundle: str
    target: str
    lock: Lock
    engines: dict[str, Engine]
    files: dict[str, File]
    golden: tuple[Score, ...]


def read_rebuilt(folder: Path, bundle: Path, target: str) -> Rebuilt:
    """The record of rebuilt engines, its files verified. Errors: BundleError for another bundle's or a
    damaged one, TargetError for another target's."""
    path = folder / RECORD
    try:
        record = msgspec.json.decode(path.read_bytes(), type=Rebuilt)
    except (OSError, msgspec.DecodeError) as error:
        raise BundleError(f"{path}: {error}; run `pi05 rebuild` again") from error
    if record.target != target:
        raise TargetError(f"{path}: engines for {record.target} found, {target} expected; rebuild for it")
    if record.bundle != (expected := manifest_sha256(bundle)):
        raise BundleError(
            f"{path}: built from the bundle with manifest {record.bundle[:12]}, this one has "
            f"{expected[:12]}; run `pi05 rebuild` again"
        )
    verify(folder, record.files, record.files, "run `pi05 rebuild` again")
    return record


def manifest_sha256(bundle: Path) -> str:
    """What a bundle is known by."""
    return hashlib.sha256((bundle / FILE).read_bytes()).hexdigest()
