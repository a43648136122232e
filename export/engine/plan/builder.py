"""Gathers a component's launches in order: values in and out, and the tiles that each may be cut into.

Nothing is compiled here, and no address is known: a value is a port, a weight or an intermediate result, and
its place follows from all launches together (arena.py).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from export.engine.plan.arena import Life, place
from export.engine.plan.measured import best_first, kind
from export.engine.plan.tiles import Tiles
from export.kernels.compile import Chip, Specialization
from export.kernels.hopper import tile_type
from pi05_runtime.plan import ALIGNMENT, Argument, Float, Int, Port, Scratch, Tiled, Weight

TYPES = {torch.bfloat16: "bf16", torch.float8_e4m3fn: "fp8e4nv", torch.float32: "fp32", torch.int32: "i32"}
"""Of elements, as Triton writes them."""


@dataclass(frozen=True, eq=False)
class Value:
    """Something that a kernel gets the address of. offset: in elements."""

    dtype: torch.dtype
    offset: int = 0


@dataclass(frozen=True, eq=False)
class PortValue(Value):
    name: str = ""


@dataclass(frozen=True, eq=False)
class WeightValue(Value):
    name: str = ""


@dataclass(frozen=True, eq=False)
class Result(Value):
    """An intermediate one. index: of those of its builder."""

    index: int = 0
    elements: int = 0

    def at(self, offset: int) -> "Result":
        """The same from an element on."""
        return replace(self, offset=offset)


Operand = Value | int | float | None


@dataclass(frozen=True)
class Tiling:
    """An operand [rows, columns] of which a kernel gets tiles [height, width]; none if height is 0."""

    operand: str
    rows: int
    columns: int
    height: int
    width: int


@dataclass(frozen=True)
class Way:
    """A kernel for a launch, a Triton function, and how it may be cut. tiled: its first arguments, if it gets
    operands by tiles."""

    kernel: Any
    tiles: Sequence[Tiles]
    grid: Callable[[Tiles], tuple[int, ...]]
    tiled: Callable[[Tiles], Mapping[str, Tiling]] = lambda _: {}


@dataclass(frozen=True)
class Candidate:
    """A variant to be, if its binary is good."""

    wanted: Specialization
    grid: tuple[int, int, int]
    tiled: tuple[Tiled, ...]


@dataclass(frozen=True)
class Call:
    """A launch to be. kind, rows: as measured.py has them."""

    name: str
    kind: str
    rows: int
    variants: tuple[Candidate, ...]
    operands: tuple[Value | int | float, ...]


@dataclass
class Builder:
    """One component at one set of shapes. weights: shared by the builders of all shapes."""

    weights: dict[str, Tensor]
    chip: Chip
    calls: list[Call] = field(default_factory=list[Call])
    _results: list[Result] = field(default_factory=list[Result])

    def result(self, dtype: torch.dtype, *shape: int) -> Result:
        """A new intermediate result, to be written by some launch to come."""
        made = Result(dtype, 0, len(self._results), math.prod(shape))
        self._results.append(made)
        return made

    def port(self, name: str, dtype: torch.dtype, offset: int = 0) -> PortValue:
        return PortValue(dtype, offset, name)

    def weight(self, name: str, make: Callable[[], Tensor]) -> WeightValue:
        """make: gives it the first time it is asked for."""
        if name not in self.weights:
            self.weights[name] = padded(make())
        return WeightValue(self.weights[name].dtype, 0, name)

    def launch(
        self,
        name: str,
        kernel: Any,
        operands: Mapping[str, Operand],
        constants: Mapping[str, int | str],
        tiles: Sequence[Tiles],
        grid: Callable[[Tiles], tuple[int, ...]],
        *others: Way,
        batches: int = 1,
    ) -> None:
        """operands: the kernel's arguments but for the constants; what is None is compiled away. others: with
        the same arguments behind those by tiles. batches: of as many rows as an operand says."""
        given = {n: v for n, v in operands.items() if v is not None}
        ordered = {n: given[n] for n in kernel.arg_names if n in given}
        ways = {t: way for way in (Way(kernel, tiles, grid), *others) for t in way.tiles}
        first = next(v for v in ordered.values() if isinstance(v, Value))
        told = (first, ordered.get("out", ordered.get("soon")))
        dtypes = [TYPES[v.dtype] for v in told if isinstance(v, Value)]
        rows = next((v for n, v in given.items() if n in ("M", "ROWS") and isinstance(v, int)), 0)
        launch = kind(kernel.fn.__name__, dtypes, constants)
        choices = best_first(self.chip.number, launch, rows * batches, tuple(ways))
        variants = tuple(_candidate(ways[choice], choice, ordered, constants) for choice in choices)
        self.calls.append(Call(name, launch, rows * batches, variants, tuple(ordered.values())))

    def arguments(self) -> tuple[list[tuple[Argument, ...]], int]:
        """(arguments of every call, bytes of the arena)."""
        lives: dict[int, Life] = {}
        for position, call in enumerate(self.calls):
            for operand in call.operands:
                if isinstance(operand, Result):
                    first = lives[operand.index].first if operand.index in lives else position
                    lives[operand.index] = Life(operand.elements * operand.dtype.itemsize, first, position)
        order = sorted(lives)
        offsets, size = place([lives[index] for index in order])
        places = {
            index: Scratch(offset, lives[index].size) for index, offset in zip(order, offsets, strict=True)
        }
        return [tuple(_argument(o, places) for o in call.operands) for call in self.calls], size


def _candidate(
    way: Way, choice: Tiles, given: Mapping[str, Value | int | float], constants: Mapping[str, int | str]
) -> Candidate:
    fixed = {**constants, **dict(choice.constants)}
    kinds = {n: _type(v) for n, v in given.items()}
    tiled: list[Tiled] = []
    for name, of in way.tiled(choice).items():
        value = given[of.operand]
        if of.height and isinstance(value, Value):
            size = value.dtype.itemsize
            kinds[name] = tile_type(TYPES[value.dtype], of.height, of.width, size)
            tiled.append(Tiled(list(given).index(of.operand), of.rows, of.columns, size, of.height))
    signature = tuple((n, kinds.get(n, "constexpr")) for n in way.kernel.arg_names)
    values = tuple((n, fixed.get(n)) for n, kind in signature if kind == "constexpr")
    wanted = Specialization(
        way.kernel.fn.__name__, signature, values, choice.warps, choice.stages, choice.registers
    )
    x, y, z = (*way.grid(choice), 1, 1)[:3]
    return Candidate(wanted, (x, y, z), tuple(tiled))


def _argument(operand: Value | int | float, places: Mapping[int, Scratch]) -> Argument:
    match operand:
        case PortValue():
            return Port(operand.name, operand.offset * operand.dtype.itemsize)
        case WeightValue():
            return Weight(operand.name)
        case Result():
            whole, skipped = places[operand.index], operand.offset * operand.dtype.itemsize
            return Scratch(whole.offset + skipped, whole.size - skipped)
        case int():
            return Int(operand)
        case float():
            return Float(operand)
        case _:
            raise TypeError(operand)


def _type(operand: Value | int | float) -> str:
    if isinstance(operand, Value):
        return f"*{TYPES[operand.dtype]}"
    return "i32" if isinstance(operand, int) else "fp32"


def padded(tensor: Tensor) -> Tensor:
    """Contiguous, and of a size that keeps the next one aligned."""
    tensor = tensor.contiguous()
    if missing := -tensor.nbytes % ALIGNMENT:
        return torch.cat([tensor.flatten(), torch.zeros(missing // tensor.itemsize, dtype=tensor.dtype)])
    return tensor
