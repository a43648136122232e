"""What the chip allows: bytes that must be read and operations that must be done, at the rates it reaches.

A component cannot be faster than its weights, inputs, cache and outputs are moved once, nor than its matrix
products and attention are computed, each at the rate that large products of its precision reach. Activations
between layers, norms, biases and launches are left out. A rate is the median of many products, so that single
launches can be a little faster; a network cannot.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

from pi05_runtime.geometry import Geometry, Stack

FLOAT, CODED = 4, 2
"""Bytes of a number in a port: fp32, and bf16."""
BYTES = {"fp32": 4, "bf16": 2, "fp8": 1, "int8": 1, "int4": 0.5 + 2 / 128, "nvfp4": 0.5 + 1 / 16}
"""Of a weight, with the scales of its block."""
MLP = ("gate_up", "down", "fc1", "fc2")
"""Layers that recipe nvfp4 holds in nvfp4; it leaves the others to fp8."""


@dataclass(frozen=True)
class Chip:
    """moved: bytes a second. operations: precision -> a second. source: where the rates are from."""

    name: str
    moved: float
    operations: Mapping[str, float]
    source: str


CHIPS = (
    Chip(
        "H100",
        2.9e12,
        {"bf16": 723e12, "fp8": 1271e12},
        "measured: a copy within the device counting bytes read and written, and matrix products of 8192^3",
    ),
    Chip(
        "H200",
        4.23e12,
        {"bf16": 763e12, "fp8": 1357e12},
        "measured, likewise: medians of 20, random data",
    ),
    Chip(
        "Thor",
        273e9,
        {"bf16": 2070e12 / 8, "fp8": 2070e12 / 4, "nvfp4": 2070e12 / 2},
        "a model, not measured: documented are 273 GB/s and 2070 TFLOP/s of sparse FP4; sparsity, and each "
        "doubling of the width, count for a factor of two",
    ),
)


def find_chip(gpu: str) -> Chip | None:
    """gpu: its name, as the driver has it."""
    return next((chip for chip in CHIPS if re.search(rf"\b{chip.name}\b", gpu, re.IGNORECASE)), None)


@dataclass(frozen=True)
class Linear:
    """A matrix product of `rows` rows. fp32: one that no recipe touches."""

    name: str
    inputs: int
    outputs: int
    rows: int
    fp32: bool = False


@dataclass(frozen=True)
class Cost:
    """As results.Floor has it."""

    weights: Mapping[str, int]
    moved: int
    operations: Mapping[str, int]

    def milliseconds(self, chip: Chip) -> tuple[float, str] | None:
        """(floor, "memory" or "operations"); None if the chip's rate of a precision is not known."""
        if not self.operations.keys() <= chip.operations.keys():
            return None
        memory = (sum(self.weights.values()) + self.moved) / chip.moved
        operations = sum(count / chip.operations[precision] for precision, count in self.operations.items())
        return 1e3 * max(memory, operations), "memory" if memory > operations else "operations"


def cost(
    component: str, g: Geometry, views: int, prefix: int, horizon: int, recipe: str, keep: Sequence[str] = ()
) -> Cost:
    """A component at one shape; denoise for one step. prefix: tokens, of images and prompt."""
    if component == "vision":
        pixels, tokens = views * 3 * g.vision.image_size**2, views * g.vision.tokens
        moved = pixels * FLOAT + tokens * g.prefix.width * CODED
    elif component == "prefill":
        moved = prefix * (g.prefix.width + 2 * g.prefix.depth * g.prefix.head_dim) * CODED
    else:
        moved = (g.modulations * 3 * g.expert.width + 2 * horizon * g.action_width) * FLOAT
    weights: Counter[str] = Counter()
    operations: Counter[str] = Counter()
    for part in parts(component, g, views, prefix, horizon, recipe, keep).values():
        weights.update(part.weights)
        operations.update(part.operations)
        moved += part.moved
    return Cost(dict(weights), moved, dict(operations))


def parts(
    component: str, g: Geometry, views: int, prefix: int, horizon: int, recipe: str, keep: Sequence[str] = ()
) -> dict[str, Cost]:
    """Each matrix product and attention of a component, under its launch's name in a kernel plan: weights and
    operations, and of what is moved the cache alone, where attention reads it."""
    # Attention is computed in bf16, whatever the recipe.
    if component == "vision":
        linears, layers = _vision(g, views * g.vision.tokens), g.vision.depth
        attention = Cost({}, 0, {"bf16": views * 4 * g.vision.tokens**2 * g.vision.width})
    elif component == "prefill":
        linears, layers = _prefill(g, prefix), g.prefix.depth - 1
        attention = Cost({}, 0, {"bf16": 4 * prefix**2 * g.prefix.heads * g.prefix.head_dim})
    else:
        linears, layers = _denoise(g, horizon), g.expert.depth
        done = 4 * horizon * (prefix + horizon) * g.expert.heads * g.expert.head_dim
        attention = Cost({}, 2 * prefix * g.prefix.head_dim * CODED, {"bf16": done})
    products = {linear.name: _product(linear, recipe, keep) for linear in linears}
    return products | {f"layers.{i}.attention": attention for i in range(layers)}


def _product(linear: Linear, recipe: str, keep: Sequence[str]) -> Cost:
    precision = _precision(linear, recipe, keep)
    size = linear.inputs * linear.outputs
    # fp32 layers are tiny, and int4 holds weights alone: both could be multiplied in bf16.
    computed = "bf16" if precision in ("fp32", "int4") else precision
    return Cost({precision: round(size * BYTES[precision])}, 0, {computed: 2 * linear.rows * size})


def _precision(linear: Linear, recipe: str, keep: Sequence[str]) -> str:
    if linear.fp32:
        return "fp32"
    if any(fnmatch(linear.name, pattern) for pattern in keep):
        return "bf16"
    return "fp8" if recipe == "nvfp4" and linear.name.rpartition(".")[2] not in MLP else recipe


def _vision(g: Geometry, rows: int) -> Iterator[Linear]:
    v = g.vision
    yield Linear("patch_embedding", 3 * v.patch**2, v.width, rows, fp32=True)
    for i in range(v.depth):
        yield Linear(f"layers.{i}.qkv", v.width, 3 * v.width, rows)
        yield Linear(f"layers.{i}.out", v.width, v.width, rows)
        yield Linear(f"layers.{i}.fc1", v.width, v.mlp, rows)
        yield Linear(f"layers.{i}.fc2", v.mlp, v.width, rows)
    yield Linear("projector", v.width, g.prefix.width, rows)


def _prefill(g: Geometry, rows: int) -> Iterator[Linear]:
    """The last layer is its keys and values alone."""
    for i in range(g.prefix.depth - 1):
        yield from _gemma(f"layers.{i}", g.prefix, rows)
    yield Linear("last.kv", g.prefix.width, 2 * g.prefix.head_dim, rows)


def _denoise(g: Geometry, rows: int) -> Iterator[Linear]:
    yield Linear("action_in", g.action_width, g.expert.width, rows, fp32=True)
    for i in range(g.expert.depth):
        yield from _gemma(f"layers.{i}", g.expert, rows)
    yield Linear("action_out", g.expert.width, g.action_width, rows, fp32=True)


def _gemma(layer: str, s: Stack, rows: int) -> Iterator[Linear]:
    yield Linear(f"{layer}.qkv", s.width, (s.heads + 2) * s.head_dim, rows)
    yield Linear(f"{layer}.o", s.heads * s.head_dim, s.width, rows)
    yield Linear(f"{layer}.gate_up", s.width, 2 * s.mlp, rows)
    yield Linear(f"{layer}.down", s.mlp, s.width, rows)
