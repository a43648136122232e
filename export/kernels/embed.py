"""What becomes tokens: images cut into patches and multiplied out, then images and prompt in a row."""

import triton
import triton.language as tl

from export.kernels.order import after_previous


@triton.jit
def patch_embedding(
    images, w, bias, position, out, ROWS,
    N: tl.constexpr, SIDE: tl.constexpr, PATCH: tl.constexpr, K: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out bf16 [ROWS, N] of images fp32 [views, 3, SIDE * PATCH, SIDE * PATCH]: SIDE * SIDE patches a view,
    each a row of K = 3 * PATCH * PATCH pixels times w fp32 [N, K], plus bias fp32 [N] and position fp32 [SIDE
    * SIDE, N]. fp32 as openpi has it, in three TF32 products. Grid: (ceil(ROWS / BM), ceil(N / BN)).
    """
    size: tl.constexpr = SIDE * PATCH
    rows, cols = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BN + tl.arange(0, BN)
    patch = rows % (SIDE * SIDE)
    corner = rows // (SIDE * SIDE) * (3 * size * size) + patch // SIDE * (PATCH * size) + patch % SIDE * PATCH
    acc = tl.zeros((BM, BN), tl.float32)
    after_previous()
    for k in tl.range(0, K, BK):
        pixel = k + tl.arange(0, BK)
        inside = pixel < K
        channel, y, x = pixel // (PATCH * PATCH), pixel // PATCH % PATCH, pixel % PATCH
        places = corner[:, None] + (channel * (size * size) + y * size + x)[None, :]
        left = tl.load(images + places, (rows < ROWS)[:, None] & inside[None, :], 0.0)
        right = tl.load(w + (cols % N)[None, :] * K + pixel[:, None], inside[:, None], 0.0)
        acc = tl.dot(left, right, acc, input_precision="tf32x3")
    columns = cols < N
    mask = (rows < ROWS)[:, None] & columns[None, :]
    acc += tl.load(bias + cols, columns, 0.0)[None, :]
    acc += tl.load(position + patch[:, None] * N + cols[None, :], mask, 0.0)
    tl.store(out + rows[:, None] * N + cols[None, :], acc.to(out.dtype.element_ty), mask)


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
