"""What was tuned on a device, as the table that plans for its chip begin with."""

from pathlib import Path

import msgspec

from export.engine.plan.builder import Call
from export.engine.plan.measured import Table, shape
from pi05_runtime.plan import read_plan
from pi05_runtime.tuned import Tuned
from tests.kernels.interpreting_device import stand_ins
from tests.validate.conftest import CHIP, PROFILE, TARGET, TINY
from validate.benchmark import kernels
from validate.benchmark.measured import FILE, chosen, write_table


def test_the_slowest_first_becomes_the_fastest(
    made: tuple[Path, dict[str, list[Call]]], tmp_path: Path
) -> None:
    bundle, calls = made
    times: dict[str, dict[str, tuple[float, ...]]] = {}
    for network in calls:
        (shaped,) = read_plan(bundle / "engines" / TARGET / network / f"{network}.plan").plan.shaped
        choices = {la.group: len(la.variants) for la in shaped.launches if len(la.variants) > 1}
        times[network] = {group: tuple(range(count, 0, -1)) for group, count in choices.items()}
    known = stand_ins(kernels.wanted(CHIP, TINY, PROFILE, "fp8"))
    entries = chosen(bundle, calls, known, Tuned("", TARGET, "a GPU", times))
    write_table(tmp_path, "a GPU", entries)
    table = msgspec.json.decode((tmp_path / FILE).read_bytes(), type=Table)
    assert table.gpu == "a GPU" and table.entries and len(table.entries) == len(entries)
    for call in (call for network in calls.values() for call in network if len(call.variants) > 1):
        last, _ = call.variants[-1]
        entry = entries[call.kind, call.rows]
        assert (entry.tile, entry.warps, entry.stages) == (
            shape(dict(last.constants)),
            last.warps,
            last.stages,
        )
