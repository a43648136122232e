"""Kernel plans: an engine as a static list of kernel launches over one block of weights.

A plan is one safetensors file: the weights as its kernels read them, the kernels' machine code beside them,
and, in the header's metadata, the launches. Nothing is compiled, chosen or allocated when it runs. It was
compiled ahead of time for one compute capability, and needs the CUDA driver and no library.
"""

import json
import math
import struct
from pathlib import Path
from typing import Any

import msgspec

from pi05_runtime.errors import EngineError
from pi05_runtime.interface import Convention

METADATA = "plan"
"""Key of the plan in the file's metadata."""
ALIGNMENT = 256
"""Of every weight's place in the block, and of every tensor's in the arena: bytes."""
TILE_WIDTH = 128
"""Of a tile that the memory engine fetches: bytes."""
_PITCH, _HIGHEST = 16, 256
"""What bytes of a row must be a multiple of, and the most rows of a tile: CUDA's tensor maps."""
_HEADER = struct.Struct("<Q")
_MOST_HEADER = 100 << 20


class Port(msgspec.Struct, frozen=True, tag="port"):
    """An input or output of the component, `offset` bytes on."""

    name: str
    offset: int = 0


class Weight(msgspec.Struct, frozen=True, tag="weight"):
    """A tensor of the file."""

    name: str


class Scratch(msgspec.Struct, frozen=True, tag="scratch"):
    """A place in the arena, which launches share. offset and size in bytes."""

    offset: int
    size: int


class Int(msgspec.Struct, frozen=True, tag="int"):
    value: int


class Float(msgspec.Struct, frozen=True, tag="float"):
    value: float


Argument = Port | Weight | Scratch | Int | Float
"""Passed by value, or as the address of what it names."""


class Kernel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Machine code. image: tensor of the file that holds the cubin. entry: the function in it. shared: bytes
    of dynamic shared memory. threads: of a block."""

    image: str
    entry: str
    shared: int
    threads: int


class Tiled(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A matrix that the memory engine fetches by tiles, with zeros beyond its end, or stores. argument:
    index of the weight, scratch or port that it is, of `rows` x `columns` elements of `itemsize` bytes.
    height: rows of a tile, whose columns are TILE_WIDTH."""

    argument: int
    rows: int
    columns: int
    itemsize: int
    height: int


class Variant(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One way to compute a launch. kernel: index into the plan's kernels. tiled: what it gets before the
    launch's own arguments."""

    kernel: int
    grid: tuple[int, int, int]
    tiled: tuple[Tiled, ...] = ()


class Launch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """name: of the layer and what is done there. variants: all give the same numbers up to rounding; the
    first is taken unless a device has measured otherwise. arguments: in the order of the kernel's."""

    name: str
    variants: tuple[Variant, ...]
    arguments: tuple[Argument, ...]

    @property
    def group(self) -> str:
        """What launches have in common that take the same variant: kernels and grids."""
        return " ".join(f"{v.kernel}@{'x'.join(map(str, v.grid))}" for v in self.variants)


class Shaped(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The launches at one set of shapes. shapes: of all ports. arena: bytes."""

    shapes: dict[str, tuple[int, ...]]
    launches: tuple[Launch, ...]
    arena: int


class Staging(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How camera frames come into the model's square of `size`. kernel: index into the plan's kernels."""

    kernel: int
    size: int
    convention: Convention


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """compute_capability: of the only chip that it runs on, as "9.0". staging: vision's."""

    component: str
    compute_capability: str
    kernels: tuple[Kernel, ...]
    shaped: tuple[Shaped, ...]
    staging: Staging | None = None


class PlanFile(msgspec.Struct, frozen=True):
    """What a plan's file says of itself. start: where its tensors begin. places: tensor -> (offset, size), in
    bytes from there."""

    path: Path
    plan: Plan
    start: int
    places: dict[str, tuple[int, int]]

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return max((offset + size for offset, size in self.places.values()), default=0)


def read_plan(path: Path) -> PlanFile:
    """The header alone: gigabytes stay where they are.

    Errors: EngineError for a file that is no plan, is cut short, or contradicts itself.
    """
    try:
        with path.open("rb") as file:
            (length,) = _HEADER.unpack(file.read(_HEADER.size))
            if length > _MOST_HEADER:
                raise _damaged(path, f"a header of {length} bytes")
            header: dict[str, Any] = json.loads(file.read(length))
        plan = msgspec.json.decode(header.pop("__metadata__")[METADATA], type=Plan)
        places = {
            n: (t["data_offsets"][0], t["data_offsets"][1] - t["data_offsets"][0]) for n, t in header.items()
        }
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    read = PlanFile(path, plan, _HEADER.size + length, places)
    if (found := path.stat().st_size) != (expected := read.start + read.size):
        raise _damaged(path, f"{found} bytes, {expected} expected")
    if found := _contradiction(read):
        raise _damaged(path, found)
    return read


def _contradiction(file: PlanFile) -> str | None:
    """The first thing that no compiler writes and that would send a kernel astray."""
    plan, places = file.plan, file.places
    for kernel in plan.kernels:
        if kernel.image not in places:
            return f"no machine code {kernel.image!r}"
    if plan.staging and not 0 <= plan.staging.kernel < len(plan.kernels):
        return "staging: no kernel of the plan"
    for shaped in plan.shaped:
        for launch in shaped.launches:
            if not launch.variants or any(not 0 <= v.kernel < len(plan.kernels) for v in launch.variants):
                return f"{launch.name}: no kernel of the plan"
            for argument in launch.arguments:
                match argument:
                    case Weight(name) if name not in places or places[name][0] % ALIGNMENT:
                        return f"{launch.name}: weight {name!r} missing or misplaced"
                    case Port(name) if name not in shaped.shapes:
                        return f"{launch.name}: port {name!r} missing"
                    case Scratch(offset, size) if not 0 <= offset <= offset + size <= shaped.arena:
                        return f"{launch.name}: scratch of {size} bytes at {offset} outside the arena"
                    case _:
                        pass
            for tiled in (t for v in launch.variants for t in v.tiled):
                if not _fits(tiled, launch, places, shaped.shapes):
                    return f"{launch.name}: tiles of argument {tiled.argument}, which has no such matrix"
    return None


def _fits(
    tiled: Tiled, launch: Launch, places: dict[str, tuple[int, int]], shapes: dict[str, tuple[int, ...]]
) -> bool:
    """Whether a launch's argument holds the matrix, and the memory engine takes it."""
    aligned = tiled.itemsize in (1, 2) and tiled.columns * tiled.itemsize % _PITCH == 0
    if not (aligned and 0 < tiled.height <= _HIGHEST and 0 <= tiled.argument < len(launch.arguments)):
        return False
    match launch.arguments[tiled.argument]:
        case Weight(name):
            size = places[name][1]
        case Scratch(_, size):
            pass
        case Port(name, offset):
            size = math.prod(shapes[name]) * tiled.itemsize - offset
            aligned = offset % _PITCH == 0
        case _:
            return False
    return aligned and 0 < tiled.rows * tiled.columns * tiled.itemsize <= size


def _damaged(path: Path, found: str) -> EngineError:
    return EngineError(f"{path}: {found} found, a kernel plan expected; copy the bundle again, or rebuild it")
