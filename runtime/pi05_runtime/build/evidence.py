"""Layer evidence: an engine's own layers held to the precisions that were planned.

A builder may silently compute a layer in another type than its Q/DQ asks for, and nothing but the engine
shows it. So every quantized linear is looked up among the engine's layers by its ONNX node, in every
optimization profile, and anything but the planned product is a fault: absent, other operands, or operands
that are cast before the product.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import msgspec

from pi05_runtime.build.layers import EngineLayer, Operand
from pi05_runtime.layer_table import Layer, Table

Source = Literal["inspector", "builder log"]

OPERANDS = {"fp8": "fp8", "int8": "int8", "nvfp4": "fp4", "int4": "int4"}
"""Precision of a quantized layer -> what both operands of its product must be."""
WEIGHT_ONLY = {"int4"}
"""Layers of which only the weights are held so: they are restored to bf16, in the product or before it."""
_NAMES = {"fp4": "nvfp4"}
_CAST_BEFORE_PRODUCT = re.compile(r"Cast\w*Fc")
"""Myelin names a fusion after its steps in their order; Fc is the product."""


class Product(msgspec.Struct, frozen=True):
    """A linear layer's product. found: its weight's precision in the engine, "unseen" where no engine layer
    could be attributed to it, which is a fault if it was planned as quantized."""

    component: str
    layer: str
    planned: str
    found: str
    kind: str
    tactic: str


class Fault(msgspec.Struct, frozen=True):
    """A linear layer that does not run as planned. lines: the engine's layers that were attributed to it."""

    layer: str
    expected: str
    found: str
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.layer}: {self.found} found, {self.expected} expected"


class Kind(msgspec.Struct, frozen=True):
    """Engine layers of one kind that read and write the same precisions, over all profiles."""

    kind: str
    reads: str
    writes: str
    count: int


class Evidence(msgspec.Struct, frozen=True):
    """layers.json. source: where the engine's layers were read."""

    source: Source
    profiles: int
    products: tuple[Product, ...]
    kinds: tuple[Kind, ...]
    faults: tuple[Fault, ...]

    @property
    def precisions(self) -> dict[str, int]:
        """Precision -> number of linear products that run in it."""
        return dict(sorted(Counter(product.found for product in self.products).items()))

    def markdown(self) -> str:
        """The evidence as people read it."""
        lines = [
            f"# Layers by precision, from the {self.source}",
            "",
            "| precision | linear products |",
            "|---|---|",
            *(f"| {name} | {count} |" for name, count in self.precisions.items()),
            "",
            f"All engine layers of {self.profiles} optimization profile(s):",
            "",
            "| kind | reads | writes | layers |",
            "|---|---|---|---|",
            *(f"| {row.kind} | {row.reads} | {row.writes} | {row.count} |" for row in self.kinds),
            "",
            "| layer | planned | found | kind | kernel |",
            "|---|---|---|---|---|",
            *(
                f"| {row.component}.{row.layer} | {row.planned} | {row.found} | {row.kind} | {row.tactic} |"
                for row in self.products
            ),
        ]
        return "\n".join(lines) + "\n"


def judge(
    tables: Iterable[Table], listings: Iterable[Sequence[EngineLayer]], profiles: int, source: Source
) -> Evidence:
    """Holds an engine's layers to the tables of its components.

    profiles: how many it was built with. listings: one with the layers of all profiles, or one a profile.
    Only listings that differ count as several: where an inspector does not follow the profile it was asked
    for, its one listing must hold every profile's products.
    """
    distinct = list(dict.fromkeys(map(tuple, listings)))
    share = 1 if len(distinct) == profiles else profiles
    layers = [layer for listing in distinct for layer in listing]
    products: list[Product] = []
    faults: list[Fault] = []
    for table in tables:
        for row in table.layers:
            name = f"{table.component}.{row.name}"
            nodes = {f"{name}.MatMul"}
            if row.precision in WEIGHT_ONLY:
                nodes.add(f"{name}.weight.DequantizeLinear")
            attributed = [[layer for layer in some if nodes.intersection(layer.nodes)] for some in distinct]
            own = [layer for some in attributed for layer in some]
            products.append(_describe(table.component, row, [x for x in own if _holds_weight(x, row)]))
            if row.precision not in OPERANDS:
                continue
            if found := next(filter(None, (_fault(row, some, share) for some in attributed)), ""):
                both = "weights" if row.precision in WEIGHT_ONLY else "both operands"
                expected = f"{both} {OPERANDS[row.precision]} in each of {profiles} profile(s)"
                faults.append(Fault(name, expected, found, tuple(layer.line for layer in own)))
    return Evidence(source, profiles, tuple(products), tuple(_count_kinds(layers)), tuple(faults))


def _is_product(layer: EngineLayer) -> bool:
    return layer.kind == "gemm" or "Fc" in layer.name


def _holds_weight(layer: EngineLayer, row: Layer) -> bool:
    """Whether a layer computes a linear's product, or a part of it. Others that its node went into rescale,
    reorder or restore weights: they hold no more than a scale for each input or output, or read nothing."""
    size = layer.weight.size if layer.weight else 0
    if row.precision in WEIGHT_ONLY:
        return size >= row.shape[0] * row.shape[1]
    if not layer.inputs or size <= max(row.shape):
        return False
    return _is_product(layer) or size >= row.shape[0] * row.shape[1]


def _describe(component: str, row: Layer, holding: Sequence[EngineLayer]) -> Product:
    layer = holding[0] if holding else None
    weight = layer.weight if layer else None
    found = _NAMES.get(weight.precision, weight.precision) if weight else "unseen"
    kind, tactic = (layer.kind, layer.tactic) if layer else ("", "")
    return Product(component, row.name, row.precision, found, kind, tactic)


def _fault(row: Layer, attributed: Sequence[EngineLayer], profiles: int) -> str:
    """What is wrong with a quantized layer's products in a listing of so many profiles, or nothing."""
    holding = [layer for layer in attributed if _holds_weight(layer, row)]
    wanted, held = OPERANDS[row.precision], 0
    for layer in holding:
        weights = layer.weight.precision if layer.weight else ""
        held += layer.weight.size if layer.weight else 0
        inputs = {operand.precision for operand in layer.inputs}
        if weights != wanted or (row.precision not in WEIGHT_ONLY and wanted not in inputs):
            return f"{_precisions(layer.inputs)} x {weights}"
        if row.precision not in WEIGHT_ONLY and _CAST_BEFORE_PRODUCT.search(layer.name):
            return f"{wanted} x {wanted}, cast before the product"
    if held >= row.shape[0] * row.shape[1] * profiles:
        return ""
    read = sorted(
        {_reads(layer) for layer in attributed if _is_product(layer)} - {_reads(x) for x in holding}
    )
    if read:
        return f"a product that reads {' or '.join(read)}"
    return f"{held} of {row.shape[0] * row.shape[1] * profiles} weights in {len(holding)} engine layers"


def _reads(layer: EngineLayer) -> str:
    return _precisions(operand for operand in (*layer.inputs, *layer.constants) if operand.size > 1)


def _count_kinds(layers: Sequence[EngineLayer]) -> Iterator[Kind]:
    counts = Counter(
        (
            layer.kind,
            _reads(layer),
            _precisions(layer.outputs),
        )
        for layer in layers
    )
    for (kind, reads, writes), count in sorted(counts.items()):
        yield Kind(kind, reads, writes, count)


def _precisions(operands: Iterable[Operand]) -> str:
    return ", ".join(sorted({operand.precision for operand in operands}))
