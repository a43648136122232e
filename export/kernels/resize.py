"""A camera's frame of any size into the model's square: what runtime/preprocess/images.py does, pixel for
pixel.

On a robot's CPU this takes longer than the policy on its GPU. Both conventions resample along rows, then
along columns, from a table of where an output pixel's taps begin and what they weigh
(runtime/preprocess/resampling.py).
"""

import triton
import triton.language as tl

from export.kernels.order import after_previous


@triton.jit
def resize(
    frame, column_starts, column_weights, row_starts, row_weights, out,
    HEIGHT, WIDTH, TOP, LEFT, ROWS, COLUMNS, COLUMN_TAPS, ROW_TAPS,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, ROUNDED: tl.constexpr,
):  # fmt: skip
    """out fp32 [3, SIZE, SIZE] in [-1, 1] of frame uint8 [HEIGHT, WIDTH, 3], which becomes ROWS x COLUMNS at
    TOP, LEFT, on black. starts int32 [outputs], weights [outputs, taps]: int32 of 22 fractional bits where
    ROUNDED, with PIL's two roundings to uint8, else fp32. BLOCK: the power of two that holds SIZE. Grid:
    (SIZE, 3).
    """
    y, channel, x = tl.program_id(0), tl.program_id(1), tl.arange(0, BLOCK)
    row, column = y - TOP, x - LEFT
    inside = (column >= 0) & (column < COLUMNS)
    value = tl.zeros((BLOCK,), tl.float32)
    after_previous()
    if row >= 0 and row < ROWS:
        first = tl.load(column_starts + column, inside, 0)
        top = tl.load(row_starts + row)
        nothing = tl.full((BLOCK,), 1 << 21, tl.int32) if ROUNDED else tl.zeros((BLOCK,), tl.float32)
        total = nothing
        for i in tl.range(0, ROW_TAPS):
            line = frame + tl.minimum(top + i, HEIGHT - 1) * WIDTH * 3 + channel
            across = nothing
            for j in tl.range(0, COLUMN_TAPS):
                weight = tl.load(column_weights + column * COLUMN_TAPS + j, inside, 0)
                pixel = tl.load(line + tl.minimum(first + j, WIDTH - 1) * 3, inside, 0)
                if ROUNDED:
                    across += pixel.to(tl.int32) * weight
                else:
                    across += tl.div_rn(pixel.to(tl.float32), 255.0) * weight
            if ROUNDED:
                across = tl.minimum(tl.maximum(across >> 22, 0), 255)
            total += across * tl.load(row_weights + row * ROW_TAPS + i)
        if ROUNDED:
            value = tl.div_rn(tl.minimum(tl.maximum(total >> 22, 0), 255).to(tl.float32), 255.0)
        else:
            value = tl.minimum(tl.maximum(total, 0.0), 1.0)
    value = tl.where(inside, value, 0.0)
    tl.store(out + (channel * SIZE + y) * SIZE + x, value * 2 - 1, x < SIZE)
