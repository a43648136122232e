"""What became of every variant of every kernel: the page to read before any measurement."""

from collections.abc import Mapping, Sequence

import msgspec
from msgspec.structs import replace

from export.engine.plan.builder import Call
from export.kernels.compile import Binary, Refused, Specialization


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A variant. constants, warps, stages: what it was compiled with. launches: how many have it among their
    variants, at all prompt buckets together. refused: why it is not in the engine."""

    kernel: str
    operands: str
    constants: dict[str, int | str]
    warps: int
    stages: int
    launches: int
    refused: str | None = None
    registers: int = 0
    shared: int = 0
    tensor: dict[str, int] = {}


class Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    title: str
    rows: tuple[Row, ...]

    def markdown(self) -> str:
        used = sum(row.refused is None for row in self.rows)
        lines = [
            f"# {self.title}: {used} kernels of {len(self.rows)} tried, none of which spills a register",
            "",
            "| kernel | operands | constants | warps | stages | launches | registers | shared | tensor |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for r in self.rows:
            constants = " ".join(f"{name}={value}" for name, value in r.constants.items())
            tensor = ", ".join(f"{count} {name}" for name, count in r.tensor.items())
            read = (
                f"{r.registers} | {r.shared} | {tensor}" if r.refused is None else f"refused: {r.refused} | |"
            )
            compiled = f"{r.kernel} | {r.operands} | {constants} | {r.warps} | {r.stages}"
            lines.append(f"| {compiled} | {r.launches} | {read} |")
        return "\n".join(lines) + "\n"


def tabulate(
    title: str, calls: Sequence[Call], compiled: Mapping[Specialization, Binary | Refused]
) -> Report:
    rows: list[Row] = []
    for wanted, binary in compiled.items():
        pointers = [f"{name} {kind[1:]}" for name, kind in wanted.signature if kind[0] == "*"]
        row = Row(
            kernel=wanted.kernel,
            operands=", ".join(pointers),
            constants={name: value for name, value in wanted.constants if value is not None},
            warps=wanted.warps,
            stages=wanted.stages,
            launches=sum(wanted == v.wanted for call in calls for v in call.variants),
        )
        match binary:
            case Refused(reason):
                rows.append(replace(row, refused=reason))
            case Binary():
                read = {"registers": binary.registers, "shared": binary.shared, "tensor": binary.tensor}
                rows.append(replace(row, **read))
    return Report(title, tuple(rows))
