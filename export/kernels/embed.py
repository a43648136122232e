"""What becomes tokens: images cut into patches, then images and prompt in a row."""

import triton
import triton.language as tl

from export.kernels.order import after_previous


@triton.jit
def patches(
    images, out, SIDE: tl.constexpr, PATCH: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """images fp32 [views, 3, SIDE * PATCH, SIDE * PATCH] to out bf16 [rows, 3, WIDTH].

    A view has SIDE * SIDE rows. A row is a patch of K = 3 * PATCH * PATCH pixels, rounded to bf16, then what
    that left of them, then the first again: times weights of the same kind (products.thirds) it is openpi's
    fp32 product over 16 bits of each factor, at the rate of bf16. Zeros beyond K. WIDTH: at least K. Grid:
    rows.
    """
    size: tl.constexpr = SIDE * PATCH
    row, pixel = tl.program_id(0), tl.arange(0, triton.next_power_of_2(WIDTH))
    patch = row % (SIDE * SIDE)
    corner = row // (SIDE * SIDE) * (3 * size * size) + patch // SIDE * (PATCH * size) + patch % SIDE * PATCH
    channel, y, x = pixel // (PATCH * PATCH), pixel // PATCH % PATCH, pixel % PATCH
    after_previous()
    values = tl.load(images + corner + channel * (size * size) + y * size + x, pixel < K, 0.0)
    high = values.to(tl.bfloat16)
    low = (values - high.to(tl.float32)).to(tl.bfloat16)
    out += row * (3 * WIDTH) + pixel
    inside = pixel < WIDTH
    tl.store(out, high, inside)
    tl.store(out + WIDTH, low, inside)
    tl.store(out + 2 * WIDTH, high, inside)


@triton.jit
def join(first, second, out, FIRST, N: tl.constexpr, WIDTH: tl.constexpr):
    """out [rows, N]: `FIRST` rows of `first`, then those of `second`. Grid: rows."""
    row, columns = tl.program_id(0), tl.arange(0, WIDTH)
    inside = columns < N
    after_previous()
    if row < FIRST:
        values = tl.load(first + row * N + columns, inside)
    else:
        values = tl.load(second + (row - FIRST) * N + columns, inside)
    tl.store(out + row * N + columns, values, inside)
