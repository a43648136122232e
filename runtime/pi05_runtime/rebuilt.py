"""The record of engines that a device built itself: from which bundle, with what, and how they did."""

import hashlib
from pathlib import Path

import msgspec

from pi05_runtime.errors import BundleError, TargetError
from pi05_runtime.geometry import decision_networks
from pi05_runtime.lock import Lock
from pi05_runtime.manifest import FILE, EngineFile, File, Manifest, names_outside

RECORD = "rebuilt.json"
AGAIN = "run `pi05 rebuild` again"


class Score(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The golden sample at one step count, against the BF16 reference."""

    steps: int
    cosine: float
    threshold: float


class Rebuilt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """rebuilt.json. bundle: sha256 of its manifest. engines: as in a manifest, beside this file. seconds and
    peak_gb: of each engine's build."""

    bundle: str
    target: str
    lock: Lock
    engines: dict[str, EngineFile]
    files: dict[str, File]
    golden: tuple[Score, ...]
    seconds: dict[str, float]
    peak_gb: dict[str, float]


def read_rebuilt(folder: Path, bundle: Path, manifest: Manifest, target: str) -> Rebuilt:
    """The record of rebuilt engines, whose files are still to be verified.

    Errors: BundleError for a damaged one, one of another bundle, or one whose engines did not pass;
    TargetError for another target's.
    """
    path = folder / RECORD
    try:
        record = msgspec.json.decode(path.read_bytes(), type=Rebuilt)
    except (OSError, msgspec.DecodeError) as error:
        raise BundleError(f"{path}: {error}; {AGAIN}") from error
    if record.target != target:
        raise TargetError(f"{path}: engines for {record.target} found, {target} expected; rebuild for it")
    if record.bundle != (expected := manifest_sha256(bundle)):
        raise BundleError(
            f"{path}: built from the bundle with manifest {record.bundle[:12]}, this one has "
            f"{expected[:12]}; {AGAIN}"
        )
    if found := _contradiction(record, manifest):
        raise BundleError(f"{path}: {found}; {AGAIN}")
    return record


def manifest_sha256(bundle: Path) -> str:
    """What a bundle is known by."""
    return hashlib.sha256((bundle / FILE).read_bytes()).hexdigest()


def _contradiction(r: Rebuilt, manifest: Manifest) -> str | None:
    """The first thing that no rebuild writes and that types cannot exclude."""
    if set(r.engines) != set(expected := decision_networks(r.engines)):
        return f"engines: {sorted(r.engines)} found, {list(expected)} expected"
    if missing := {engine.file for engine in r.engines.values()} - r.files.keys():
        return f"files: lacks {sorted(missing)}"
    if outside := names_outside(r.files):
        return f"files: {outside[0]!r} found, only names inside the folder expected"
    if (steps := [score.steps for score in r.golden]) != list(manifest.golden.steps):
        return f"golden: steps {steps} found, {list(manifest.golden.steps)} expected"
    if failed := [score.steps for score in r.golden if not score.cosine >= score.threshold]:
        return f"golden: the engines did not pass at {failed} steps"
    return None
