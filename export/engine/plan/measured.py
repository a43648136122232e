"""What a chip was measured to like best, so that a plan is fast there before anybody tunes it.

measured/sm<chip>.json holds, for each kind of launch, the tile that `pi05 tune` chose on that chip, at every
number of rows that was measured; a launch takes that of the nearest that it can have, in a height of its own
if it can have none. It only says which variant comes first: all of them go into the engine.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

import msgspec
from msgspec.structs import replace

from export.engine.plan.tiles import Tiles

TABLES = Path(__file__).parent / "measured"
SHAPE = ("BM", "BN", "SLICES", "MORE", "SOON", "ADMIT")
"""Constants that make a tile what it is; the others follow from the launch."""


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """launch: its kind. rows: as many it had. tile: constant -> value, of SHAPE."""

    launch: str
    rows: int
    tile: dict[str, int]
    warps: int
    stages: int


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """gpu: what was measured on."""

    gpu: str
    entries: tuple[Entry, ...]


def kind(kernel: str, dtypes: Iterable[str], constants: Mapping[str, int | str]) -> str:
    """Of a launch, whatever its rows. dtypes: of its first operand and of its result, or, where all results
    are alike, of the weights that it may ask for. constants: but for those of its tile."""
    return " ".join((kernel, *dtypes, *(f"{name}={value}" for name, value in constants.items())))


def best_first(chip: int, launch: str, rows: int, tiles: Sequence[Tiles]) -> tuple[Tiles, ...]:
    """The tiles with the measured one, if there is one, in front. chip: as Triton counts."""
    for alike in (_same, _same_but_for_height):
        offered = [entry for entry in _entries(chip) if any(alike(entry, t) for t in tiles)]
        known = [e for e in offered if e.launch == launch] or [
            e for e in offered if _whole(e.launch) == _whole(launch)
        ]
        if known:
            best = min(known, key=lambda entry: abs(entry.rows - rows))
            return tuple(sorted(tiles, key=lambda t: not alike(best, t)))
    return tuple(tiles)


def _whole(launch: str) -> list[str]:
    """Its kind, into however many parts it is split, which follow from the rows, and whatever is asked for
    meanwhile."""
    free = ("SPLITS=", "WIDTH=", "SOON_BYTES=", "LATER_BYTES=")
    return [word for word in launch.split() if not word.startswith(free)]


def shape(constants: Mapping[str, int | str | None]) -> dict[str, int]:
    """What an entry keeps of a tile."""
    return {name: value for name in SHAPE if isinstance(value := constants.get(name), int)}


@cache
def _entries(chip: int) -> tuple[Entry, ...]:
    path = TABLES / f"sm{chip}.json"
    return msgspec.json.decode(path.read_bytes(), type=Table).entries if path.exists() else ()


def _same(entry: Entry, t: Tiles) -> bool:
    return (entry.tile, entry.warps, entry.stages) == (shape(dict(t.constants)), t.warps, t.stages)


def _same_but_for_height(entry: Entry, t: Tiles) -> bool:
    """Whatever its BM: of an action chunk a tile has all rows, however many they are."""
    lower = {**entry.tile, "BM": shape(dict(t.constants)).get("BM", 0)}
    return "BM" in entry.tile and _same(replace(entry, tile=lower), t)
