"""How a launch may be cut into tiles: what is tried for each kind of product, and what was measured best.

Which tiles are best is a property of chip and shape that only a measurement tells. Every tile here that
compiles without spilling a register goes into the engine as a variant; the first is taken until a device has
measured (`pi05 tune`).
"""

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass

from export.kernels.order import ASKED, AT_ONCE, ENDED, FETCHED
from export.kernels.persistent import BUFFERED

DEPTH = 128
"""What a product takes of K at a time, in bytes, where K is a multiple of as much."""
AHEAD = 16 << 20
"""Bytes of weights, up to which a product of many rows asks for them before it waits: of more, what is asked
for last is in the way of what is wanted first."""
KEYS = 64
"""Cached or own ones that a program of the chunk's attention takes."""
SOON = 8 << 20
"""Bytes of weights that the chunk's attention asks for."""
TALL = 64
"""Rows of weights that a full-rate tensor-core instruction takes as its first operand."""
_SHARED = 216 << 10
"""Shared memory of a block for what it is to multiply, on the chip that has persistent ones."""
_OVERHEAD, _TRAFFIC, _FETCHING = 8, 1 << 21, 0.25
"""What a block costs beside its products, how many bytes of a result cost as much as one, and what fetching
128 rows over DEPTH does, in products of 128 x 128 over DEPTH."""


@dataclass(frozen=True)
class Tiles:
    """constants: of the kernel. warps: of a block. stages: of the software pipeline. registers: of a thread
    as its block starts, None where the assembler has its way."""

    constants: tuple[tuple[str, int], ...]
    warps: int
    stages: int
    registers: int | None = None

    def __getitem__(self, name: str) -> int:
        return dict(self.constants)[name]


def tiles(warps: int, stages: int, registers: int | None = None, **constants: int) -> Tiles:
    return Tiles(tuple(constants.items()), warps, stages, registers)


def power_of_two(n: int) -> int:
    """The least power of two that is no smaller."""
    return 1 << (n - 1).bit_length()


def best_splits(processors: int, rows: int, n: int, k: int, fp8: bool) -> int:
    """How many programs should share a tile, each with a part of K: few tiles leave processors idle, and
    every part is written and read again."""
    steps = k // _depth(k, fp8)
    blocks = [height * 256 / 128**2 for height in _heights(rows, 128)] * -(-n // 256)

    def time(splits: int) -> float:
        ends = [0.0] * processors
        for area in blocks * splits:
            heapq.heapreplace(ends, ends[0] + -(-steps // splits) * area + _OVERHEAD)
        return max(ends) + splits * rows * n * 4 / _TRAFFIC

    return min(_possible_splits(steps), key=time)


def _possible_splits(steps: int) -> Iterator[int]:
    """The last part must have something left."""
    return (s for s in range(1, 9) if -(-steps // s) * (s - 1) < steps)


def _depth(k: int, fp8: bool) -> int:
    return math.gcd(k, DEPTH if fp8 else DEPTH // 2)


def _heights(rows: int, height: int) -> list[int]:
    """Of the tiles of a column: the last may be half as high."""
    full, rest = divmod(rows, height)
    return [height] * full + ([height // 2 if rest <= height // 2 >= 64 else height] if rest else [])


def matmul_tiles(rows: int, n: int, k: int, fp8: bool, divides: int) -> Iterator[Tiles]:
    """Many rows. divides: what a tile's columns must divide, as heads in a rotation ask for, or 0."""
    ahead = int(n * k * (1 if fp8 else 2) <= AHEAD)
    for height, columns, warps, stages in (
        (128, 256, 8, 3),
        (128, 256, 8, 4),
        (128, 128, 8, 4),
        (128, 128, 4, 4),
        (128, 128, 8, 3),
        (64, 128, 4, 3),
        (64, 128, 4, 4),
        (64, 128, 4, 6),
        (64, 256, 4, 3),
        (128, 64, 4, 4),
        (64, 64, 4, 4),
        (64, 16, 4, 4),
    ):
        if (divides and divides % columns) or columns > power_of_two(n):
            continue
        sizes = {"BM": height, "BN": columns, "BK": _depth(k, fp8), "GROUP": 8}
        yield tiles(warps, stages, **sizes, LAST=_heights(rows, height)[-1], AHEAD=ahead)


def persistent_tiles(rows: int, n: int, k: int, fp8: bool, divides: int = 0) -> Iterator[Tiles]:
    """Many rows, where one block a multiprocessor takes many tiles. Of the rows that a tile may have beyond a
    power of two, those that leave fewer tiles; and as many stages as there is shared memory for. divides: as
    above. Where they can, blocks start with so few registers that they come while a norm's are there."""
    depth = DEPTH if fp8 else DEPTH // 2
    if k % depth:
        return
    for columns, height, warps, registers in (
        (128, 256, 8, None),
        (128, 128, 8, 104),
        (TALL, 128, 4, 128),
    ):
        # A rotation's angles take as many registers as its sums.
        if n % columns or (divides and (divides % columns or columns > TALL)):
            continue
        fewest = rows + 1
        for more in (0, 16, 32, 64):
            if (tall := -(-rows // (height + more))) < fewest:
                fewest = tall
                result = height * columns * 2 if height <= BUFFERED.value else 0
                stages = (_SHARED - result) // ((columns + height + more) * DEPTH)
                sizes = {"BM": height, "MORE": more, "BN": columns, "BK": depth, "STAGES": stages}
                for admit in (AT_ONCE, ENDED):
                    yield tiles(warps, stages, registers, **sizes, ADMIT=admit.value)


def persistent_splits(processors: int, rows: int, n: int, k: int, fp8: bool) -> int:
    """As `best_splits`, where persistent blocks have tiles for the product: what they fetch counts too."""

    def time(t: Tiles, splits: int) -> float:
        height, more, columns = t["BM"], t["MORE"], t["BN"]
        # Fewer rows than 32 cost an instruction as much as these.
        area = (height + (max(more, 32) if more else 0)) / 128 * columns / 128
        step = area + (columns + height + more) / 128 * _FETCHING
        turns = -(-splits * (n // columns) * -(-rows // (height + more)) // processors)
        block = -(-(k // t["BK"]) // splits) * step + 1.5 * area + _OVERHEAD / 2
        # What parts take here, and again in the norm that adds them.
        return turns * block + splits * rows * n * 8 / _TRAFFIC

    choices = list(persistent_tiles(rows, n, k, fp8))
    return min(_possible_splits(k // choices[0]["BK"]), key=lambda s: min(time(t, s) for t in choices))


def skinny_tiles(n: int, k: int, divides: int, least: int = 1) -> Iterator[Tiles]:
    """Few rows, 16 a program: columns, `least` or more, and slices of the k that a program sums over, one a
    warp. divides: as above."""
    for columns, slices in ((16, 4), (32, 4), (16, 2), (32, 2), (16, 8), (32, 8), (8, 8)):
        if k % slices or (k // slices) % 16 or not least <= columns <= n or (divides and divides % columns):
            continue
        width = max(32, power_of_two(k // slices))
        yield tiles(slices, 2, BM=16, BN=columns, SLICES=slices, WIDTH=width)


def tall_tiles(rows: int, n: int, k: int, fp8: bool, divides: int) -> Iterator[Tiles]:
    """Few rows and full-rate instructions, which take weights as the tall operand. k: a program's. divides:
    as above."""
    if k % (DEPTH if fp8 else DEPTH // 2) or rows > TALL:
        return
    height = max(16, power_of_two(rows))
    for columns in (TALL, 2 * TALL):
        if n % columns or (divides and divides % columns):
            continue
        for admit in (AT_ONCE, FETCHED, ENDED):
            yield tiles(columns // 16, 1, BM=height, BN=columns, BK=k, ADMIT=admit.value)


def tall_splits(processors: int, n: int, k: int, fp8: bool) -> int:
    """How many programs should share TALL columns, each with a part of K."""
    return max(math.gcd(processors // max(n // TALL, 1), k // _depth(k, fp8)), 1)


def norm_tiles(asks: bool) -> Iterator[Tiles]:
    """A row a program. asks: whether there are weights to be asked for."""
    for warps, admit in ((4, AT_ONCE), (8, AT_ONCE), (2, AT_ONCE), (16, AT_ONCE), (8, ENDED), (16, ENDED)):
        for soon in range(1 + (asks and warps > 2)):
            yield tiles(warps, 1, ADMIT=admit.value, SOON=soon)


def chunk_tiles(rows: int, soon: int) -> Iterator[Tiles]:
    """An action chunk's attention. soon: bytes of weights that may be asked for meanwhile."""
    for warps, asked in ((4, 0), (4, SOON), (4, SOON // 2), (8, 0), (8, SOON)):
        if (size := min(asked, soon) // ASKED.value * ASKED.value) or not asked:
            yield tiles(warps, 1, BM=rows, BN=KEYS, SOON=size)


def tall_chunk_tiles(rows: int, dim: int, soon: int) -> Iterator[Tiles]:
    """As `chunk_tiles`, where keys and the dims of values are the tall operands."""
    if dim % TALL:
        return
    for warps, asked in ((4, 0), (8, 0), (4, SOON // 2)):
        for admit in (AT_ONCE, ENDED):
            if asked <= soon:
                yield tiles(warps, 1, BM=rows, KEYS=KEYS, SOON=asked, ADMIT=admit.value)


def attention_tiles(rows: int) -> Iterator[Tiles]:
    for height, keys, warps, stages in (
        (64, 32, 4, 3),
        (128, 64, 8, 3),
        (128, 64, 8, 2),
        (64, 128, 4, 2),
        (64, 64, 4, 3),
        (64, 64, 4, 2),
        (64, 16, 8, 3),
        (64, 128, 4, 3),
        (128, 128, 8, 2),
    ):
        if height <= max(64, power_of_two(rows)):
            yield tiles(warps, stages, BM=height, BN=keys)


def pingpong_tiles(dim: int) -> Iterator[Tiles]:
    """Attention of one head by two warp groups: as many stages as there is shared memory for."""
    if dim == 256:
        yield tiles(4, 1, BM=64, BN=64, STAGES=3)


def resident_tiles(keys: int, dim: int) -> Iterator[Tiles]:
    """Attention of heads of 64 and up to 16 more, over keys that are all held at once."""
    if keys == 256 and 64 < dim <= 80:
        yield tiles(4, 1, BM=64, BN=keys)
        yield tiles(8, 1, BM=128, BN=keys)
