"""How a launch may be cut into tiles: what is tried for each kind of product, and what was measured best.

Which tiles are best is a property of chip and shape that only a measurement tells. Every tile here that
compiles without spilling a register goes into the engine as a variant; the first is taken until a device has
measured (`pi05 tune`).
"""

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


def matmul_tiles(n: int, fp8: bool, divides: int | None) -> Iterator[Tiles]:
    """Many rows. divides: what a tile's columns must divide, as heads in a rotation ask for."""
    depth = 128 if fp8 else 64
    for rows, columns, warps, stages in (
        (128, 256, 8, 3),
        (128, 256, 8, 4),
        (64, 256, 4, 4),
        (64, 256, 4, 2),
        (128, 128, 8, 4),
        (128, 128, 4, 4),
        (128, 64, 4, 4),
        (64, 128, 4, 4),
        (64, 128, 4, 6),
        (64, 64, 4, 4),
        (64, 64, 4, 7),
        (64, 32, 4, 6),
        (64, 16, 4, 4),
    ):
        if divides and divides % columns:
            continue
        if columns <= power_of_two(n):
            yield tiles(warps, stages, BM=rows, BN=columns, BK=depth, GROUP=8)


def skinny_tiles(rows: int, n: int, k: int, divides: int | None) -> Iterator[Tiles]:
    """Few rows: columns a program, and slices of what is summed over, one a warp."""
    height = max(16, power_of_two(rows))
    for columns, slices in ((8, 8), (16, 8), (16, 4), (32, 8), (32, 4), (64, 8), (64, 4), (16, 2), (16, 16), (8, 16)):
        if k % slices or (k // slices) % 16 or columns > n or (divides and divides % columns):
            continue
        yield tiles(slices, 2, BM=height, BN=columns, SLICES=slices, WIDTH=max(32, power_of_two(k // slices)))


def attention_tiles(rows: int) -> Iterator[Tiles]:
    for height, keys, warps in ((128, 64, 8), (128, 32, 8), (64, 64, 4), (64, 128, 4), (64, 128, 8), (64, 64, 8), (64, 32, 4), (64, 16, 8)):
        if height <= max(64, power_of_two(rows)):
            yield tiles(warps, 2, BM=height, BN=keys)


def decode_attention_tiles(rows: int) -> Iterator[Tiles]:
    height = max(16, power_of_two(rows))
    for splits, keys in ((16, 32), (16, 64), (8, 64), (8, 32), (4, 64), (12, 64)):
        yield tiles(4, 2, BM=height, BN=keys, SPLITS=splits)
