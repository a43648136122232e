"""openpi's norm_stats.json: found where openpi puts it, or named in params.yaml.

openpi's converter often leaves the assets behind, so a converted directory without them is common
and the file can be given by path.
"""

import hashlib
from pathlib import Path

import msgspec

from export.params import InterfaceParams, PinnedFile
from pi05_runtime.errors import CheckpointError
from pi05_runtime.interface import Normalization, Statistics


class _Entry(msgspec.Struct):
    mean: tuple[float, ...]
    std: tuple[float, ...]
    q01: tuple[float, ...] | None = None
    q99: tuple[float, ...] | None = None

    def statistics(self) -> Statistics:
        return Statistics(self.mean, self.std, self.q01 or (), self.q99 or ())


class _NormStats(msgspec.Struct):
    state: _Entry
    actions: _Entry


class _File(msgspec.Struct):
    norm_stats: _NormStats


def find_norm_stats(directory: Path, given: PinnedFile | None) -> Path:
    """The file to read. Errors: CheckpointError when there is none or more than one to choose from,
    or when a given file is not the one that was pinned."""
    if given is not None:
        return _pinned(given)
    found = sorted(directory.glob("assets/**/norm_stats.json"))
    if len(found) == 1:
        return found[0]
    choice = f"found {[str(p) for p in found]}" if found else "found none (openpi's converter drops them)"
    raise CheckpointError(
        f"{directory}: expected one assets/<asset_id>/norm_stats.json, {choice}; "
        "name the file and its sha256 in params.yaml: checkpoint.norm_stats"
    )


def read_norm_stats(path: Path, interface: InterfaceParams) -> Normalization:
    """Statistics and mode. Errors: CheckpointError naming file and field."""
    try:
        stats = msgspec.json.decode(path.read_bytes(), type=_File).norm_stats
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: {error}; openpi's compute_norm_stats.py writes this file") from None
    mode = interface.normalization
    if mode is None:
        raise CheckpointError(
            f"{path} does not say which normalisation the policy was trained with; "
            "set checkpoint.interface.normalization to quantile (pi0.5's default) or zscore"
        )
    return Normalization(mode, mode, stats.state.statistics(), stats.actions.statistics(), "openpi")


def _pinned(given: PinnedFile) -> Path:
    path = Path(given.path)
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; checkpoint.norm_stats must name a file") from None
    if found != given.sha256:
        raise CheckpointError(
            f"{path}: sha256 {found} found, {given.sha256} expected; statistics of another training run "
            "move a robot wrongly: restore the file, or change checkpoint.norm_stats on purpose"
        )
    return path
