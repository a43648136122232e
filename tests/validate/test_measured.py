"""What was tuned on a device, as the table that plans for its chip begin with."""

from pathlib import Path

import msgspec
import pytest

from export.engine.plan import measured
from export.engine.plan.builder import Call
from export.engine.plan.measured import Table
from pi05_runtime.engines.tuning import Network
from pi05_runtime.plan import read_plan
from pi05_runtime.tuned import Tuned
from tests.kernels.interpreting_device import stand_ins
from tests.validate.conftest import CHIP, PROFILE, TARGET, TINY
from validate.benchmark import kernels, seeded
from validate.benchmark.measured import FILE, chosen, write_table


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
    modules = seeded.components(
        seeded.seeded_weights(TINY, "meta"), TINY, seeded.interface_of(PROFILE, TINY), "meta"
    )
    ranges = {c: dict.fromkeys(seeded.quantizable(m), 1.0) for c, m in modules.items()}
    again = seeded.describe(CHIP, PROFILE, TINY, "fp8", modules, ranges, "meta", tmp_path / "described")
    for network, (one,) in again.items():
        for before, after in zip(calls[network], one.builder.calls, strict=True):
            assert after.variants[0] == before.variants[-1], before.name
