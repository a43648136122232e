"""What was tuned on a device, as the table that plans for its chip begin with."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from export.engine.plan import Described, measured
from export.engine.plan.builder import Call
from export.engine.plan.measured import Entry, Table, shape
from export.kernels.compile import Chip
from pi05_runtime.engines.tuning import Network
from pi05_runtime.geometry import PI05, Geometry
from pi05_runtime.plan import read_plan
from pi05_runtime.targets import Recipe
from pi05_runtime.tuned import Tuned
from tests.kernels.interpreting_device import stand_ins
from tests.validate.conftest import CHIP, PROFILE, TARGET, TINY
from validate.benchmark import kernels, seeded
from validate.benchmark.measured import FILE, chosen, write_table
from validate.benchmark.profiles import PROFILES, Profile


def test_the_slowest_first_becomes_the_fastest(
    made: tuple[Path, dict[str, list[Call]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, calls = made
    networks: dict[str, Network] = {}
    for network in calls:
        (shaped,) = read_plan(bundle / "engines" / TARGET / network / f"{network}.plan").plan.shaped
        choices = {la.group: len(la.variants) for la in shaped.launches if len(la.variants) > 1}
        groups = {group: tuple(range(count, 0, -1)) for group, count in choices.items()}
        networks[network] = Network(groups, 2.0, 1.0)
    known = stand_ins(kernels.wanted(CHIP, TINY, PROFILE, "fp8"))
    entries = chosen(bundle, calls, known, Tuned("", TARGET, "a GPU", networks))
    write_table(tmp_path, "a GPU", entries)
    table = msgspec.json.decode((tmp_path / FILE).read_bytes(), type=Table)
    assert table.gpu == "a GPU" and len(table.entries) == len(entries)
    monkeypatch.setattr(measured, "_entries", lambda chip: table.entries)
    for network, one in described(CHIP, PROFILE, TINY, "fp8", tmp_path / "described").items():
        for before, after in zip(calls[network], one.builder.calls, strict=True):
            assert after.variants[0] == before.variants[-1], before.name


@pytest.mark.parametrize("path", sorted(measured.TABLES.iterdir()), ids=lambda path: path.stem)
def test_a_committed_table_is_of_launches_and_tiles_that_there_are(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each comes first in a launch at full size, of policies that keep some, all or no layers in bf16."""
    chip = Chip(int(path.stem.removeprefix("sm")))
    firsts: dict[tuple[str, int], Entry] = {}
    policies: list[tuple[Recipe, Any]] = [("fp8", seeded.kept), ("fp8", lambda _: {}), ("bf16", seeded.kept)]
    for turn, (recipe, kept) in enumerate(policies):
        monkeypatch.setattr(seeded, "kept", kept)
        for name in ("C", "A10"):
            folder = tmp_path / f"{turn}-{name}"
            for one in described(chip, PROFILES[name], PI05, recipe, folder).values():
                for call in one.builder.calls:
                    best = call.variants[0].wanted
                    tile = shape(dict(best.constants))
                    entry = Entry(call.kind, call.rows, tile, best.warps, best.stages)
                    firsts[entry.launch, entry.rows] = entry
    table = msgspec.json.decode(path.read_bytes(), type=Table)
    keys = [(entry.launch, entry.rows) for entry in table.entries]
    assert table.gpu and keys == sorted(set(keys))
    for key, entry in zip(keys, table.entries, strict=True):
        assert firsts[key] == entry


def described(
    chip: Chip, profile: Profile, geometry: Geometry, recipe: Recipe, folder: Path
) -> dict[str, Described]:
    """Component -> its launches, at the profile's one prompt bucket."""
    modules = seeded.components(
        seeded.seeded_weights(geometry, "meta"), geometry, seeded.interface_of(profile, geometry), "meta"
    )
    ranges = {c: dict.fromkeys(seeded.quantizable(m), 1.0) for c, m in modules.items()}
    found = seeded.describe(chip, profile, geometry, recipe, modules, ranges, "meta", folder)
    return {component: one for component, (one,) in found.items()}
