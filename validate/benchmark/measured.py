"""What `pi05 tune` chose for the plans that were made here, as the table of its chip that plans begin with:
export/engine/plan/measured.py reads it once it is committed there."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from export.engine.plan.builder import Call
from export.engine.plan.measured import Entry, Table, shape
from export.kernels.compile import Binary, Refused, Specialization
from pi05_runtime.manifest import read_manifest
from pi05_runtime.plan import read_plan
from pi05_runtime.staging import write_file
from pi05_runtime.tuned import Tuned

FILE = "measured.json"
Calls = Mapping[str, Sequence[Call]]


def chosen(
    bundle: Path, calls: Calls, kernels: Mapping[Specialization, Binary | Refused], tuned: Tuned
) -> dict[tuple[str, int], Entry]:
    """(kind of launch, rows) -> entry, of each launch that has a choice. calls: network -> its own, as the
    bundle's plans have them."""
    found: dict[tuple[str, int], Entry] = {}
    engines = read_manifest(bundle).targets[tuned.target].engines
    for network, described in calls.items():
        (shaped,) = read_plan(bundle / engines[network].file).plan.shaped
        for call, launch in zip(described, shaped.launches, strict=True):
            if len(launch.variants) > 1:
                usable = [v.wanted for v in call.variants if isinstance(kernels[v.wanted], Binary)]
                best = usable[tuned.choices[network][launch.group]]
                tile = shape(dict(best.constants))
                found[call.kind, call.rows] = Entry(call.kind, call.rows, tile, best.warps, best.stages)
    return found


def write_table(folder: Path, gpu: str, entries: Mapping[tuple[str, int], Entry]) -> None:
    table = Table(gpu, tuple(entries[key] for key in sorted(entries)))
    write_file(folder / FILE, msgspec.json.format(msgspec.json.encode(table), indent=1) + b"\n")
