"""How a launch may be cut into tiles: what is tried for each kind of product, and what was measured best.

Which tiles are best is a property of chip and shape that only a measurement tells. Every tile here that
compiles without spilling a register goes into the engine as a variant; the first is taken until a device has
measured (`pi05 tune`).
"""

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Tiles:
    """constants: of the kernel. warps: of a block. stages: of the software pipeline."""

    constants: tuple[tuple[str, int], ...]
    warps: int
    stages: int

    def __getitem__(self, name: str) -> int:
        return dict(self.constants)[name]


def tiles(warps: int, stages: int, **constants: int) -> Tiles:
    return Tiles(tuple(constants.items()), warps, stages)


def power_of_two(n: int) -> int:
    """The least power of two that is no smaller."""
    return 1 << (n - 1).bit_length()


DEPTH = 128
"""What a product takes of K at a time, in bytes, where K is a multiple of as much."""
_OVERHEAD = 4
"""What a block costs beside its products, in those of a tile of 128 x 128."""


def matmul_tiles(
    processors: int, rows: int, n: int, k: int, fp8: bool, divides: int | None
) -> Iterator[Tiles]:
    """Many rows. divides: what a tile's columns must divide, as heads in a rotation ask for."""
    depth = math.gcd(k, DEPTH if fp8 else DEPTH // 2)
    for height, columns, warps, stages in (
        (128, 256, 8, 3),
        (128, 256, 8, 4),
        (64, 256, 4, 4),
        (128, 128, 8, 4),
        (128, 128, 4, 4),
        (128, 128, 8, 3),
        (64, 128, 4, 3),
        (64, 128, 4, 4),
        (64, 128, 4, 6),
        (64, 64, 4, 4),
        (64, 64, 4, 7),
        (64, 16, 4, 4),
    ):
        if (divides and divides % columns) or columns > power_of_two(n):
            continue
        last = 64 if 0 < rows % height <= 64 else height
        sizes = {"BM": height, "BN": columns, "BK": depth, "GROUP": 8, "LAST": last}
        blocks = [[height] * (rows // height) + [last] * (rows % height > 0)] * -(-n // columns)
        times = {
            splits: _makespan(
                processors, [h for row in blocks for h in row] * splits, columns, k // depth, splits
            )
            for splits in range(1, 9)
            if k // depth > splits * (splits - 1)
        }
        for splits in sorted({1, min(times, key=times.__getitem__)}):
            yield tiles(warps, stages, **sizes, SPLITS=splits)


def _makespan(processors: int, heights: list[int], columns: int, steps: int, splits: int) -> float:
    """Of blocks taken in turn, in steps of a tile of 128 x 128."""
    ends = [0.0] * processors
    for height in heights:
        area = height * columns / 128**2
        merged = (splits - 1) * area if splits > 1 else 0
        heapq.heapreplace(ends, ends[0] + -(-steps // splits) * area + _OVERHEAD + merged)
    return max(ends)


def skinny_tiles(rows: int, n: int, k: int, divides: int | None) -> Iterator[Tiles]:
    """Few rows: columns a program, and slices of what is summed over, one a warp."""
    height = max(16, power_of_two(rows))
    for columns, slices in (
        (8, 8),
        (16, 8),
        (16, 4),
        (32, 8),
        (32, 4),
        (64, 8),
        (64, 4),
        (16, 2),
        (16, 16),
        (32, 16),
    ):
        if k % slices or (k // slices) % 16 or columns > n or (divides and divides % columns):
            continue
        yield tiles(slices, 2, BM=height, BN=columns, SLICES=slices, WIDTH=max(32, power_of_two(k // slices)))


def attention_tiles(rows: int) -> Iterator[Tiles]:
    for height, keys, warps, stages in (
        (128, 64, 8, 2),
        (128, 64, 8, 3),
        (128, 32, 8, 3),
        (64, 64, 4, 2),
        (64, 64, 4, 3),
        (64, 128, 4, 2),
        (64, 64, 8, 2),
        (64, 64, 8, 3),
        (64, 32, 4, 3),
        (64, 32, 8, 3),
        (64, 16, 8, 3),
    ):
        if height <= max(64, power_of_two(rows)):
            yield tiles(warps, stages, BM=height, BN=keys)


def decode_attention_tiles(rows: int, prefix: int) -> Iterator[Tiles]:
    height = max(16, power_of_two(rows))
    for keys, warps in ((128, 8), (64, 8), (64, 4)):
        splits = -(-(prefix + rows) // keys)
        sizes = {"SPLITS": splits, "WIDTH": power_of_two(splits), "BM": height, "BN": keys}
        yield tiles(warps, 1, **sizes, CHUNK=min(height, 64 // power_of_two(splits)))
