"""How a launch may be cut into tiles: what is tried for each kind of product, and what was measured best.

Which tiles are best is a property of chip and shape that only a measurement tells. Every tile here that
compiles without spilling a register goes into the engine as a variant; the first is taken until a device has
measured (`pi05 tune`).
"""

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
BLOCKS = 132
"""That a large chip runs at once: where there are fewer tiles, several programs may share one."""


def matmul_tiles(rows: int, n: int, k: int, fp8: bool, divides: int | None) -> Iterator[Tiles]:
    """Many rows. divides: what a tile's columns must divide, as heads in a rotation ask for."""
    depth = math.gcd(k, DEPTH if fp8 else DEPTH // 2)
    for height, columns, warps, stages in (
        (128, 256, 8, 3),
        (128, 256, 8, 4),
        (64, 256, 4, 4),
        (128, 128, 8, 4),
        (128, 128, 4, 4),
        (128, 128, 8, 3),
        (64, 128, 4, 4),
        (64, 128, 4, 6),
        (64, 64, 4, 4),
        (64, 64, 4, 7),
        (64, 16, 4, 4),
    ):
        if (divides and divides % columns) or columns > power_of_two(n):
            continue
        count = -(-rows // height) * -(-n // columns)
        for splits in (1, 2, 3, 4):
            spread = count * splits <= 2 * BLOCKS and k // splits >= 8 * depth
            if k % (splits * depth) or (splits > 1 and not spread):
                continue
            sizes = {"BM": height, "BN": columns, "BK": depth, "GROUP": 8, "SPLITS": splits}
            yield tiles(warps, stages, **sizes)


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
    for keys, warps in ((64, 4), (64, 8), (32, 4), (32, 8), (128, 8)):
        if keys >= height:
            yield tiles(warps, 1, BM=height, BN=keys, SPLITS=-(-prefix // keys))
