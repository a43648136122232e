"""Norms, a row a program, and what comes just before one: the sum of a product's parts, and the residual.

RMS without a weight, which the next matrix holds; RMS with a step's modulation, adaRMS; or LayerNorm.
"""

import triton
import triton.language as tl

from export.kernels.epilogue import rounded
from export.kernels.order import after_previous

EPSILON: tl.constexpr = tl.constexpr(1e-6)


@triton.jit
def norm(
    x, parts, shift, summed, weight, bias, modulation, out, ROWS, inverse_scale,
    N: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """out [ROWS, N] of x [ROWS, N], or of x + shift + parts, rounded to bf16 and stored to `summed` too.

    parts: [SPLITS, ROWS, N]. shift: [N]. These and x: bf16, or fp32 from the patch embedding. weight, bias:
    bf16 [N] of a LayerNorm. modulation: fp32 scale [N] and shift [N] of adaRMS. WIDTH: the power of two that
    holds N. Grid: ROWS.
    """
    columns = tl.arange(0, WIDTH)
    inside = columns < N
    places = tl.program_id(0) * N + columns
    if modulation is not None:
        factor = 1 + tl.load(modulation + columns, inside, 0.0)
        moved = tl.load(modulation + N + columns, inside, 0.0)
    elif weight is not None:
        factor = tl.load(weight + columns, inside, 0.0).to(tl.float32)
        moved = tl.load(bias + columns, inside, 0.0).to(tl.float32)
    after_previous()
    values = tl.load(x + places, inside, 0.0).to(tl.float32)
    if parts is not None:
        for split in tl.static_range(SPLITS):
            values += tl.load(parts + split * ROWS * N + places, inside, 0.0).to(tl.float32)
        if shift is not None:
            values += tl.load(shift + columns, inside, 0.0).to(tl.float32)
        stored = values.to(summed.dtype.element_ty)
        tl.store(summed + places, stored, inside)
        values = stored.to(tl.float32)
    if weight is not None:
        values = tl.where(inside, values - tl.sum(values, 0) / N, 0.0)
    values *= tl.rsqrt(tl.sum(values * values, 0) / N + EPSILON)
    if modulation is not None or weight is not None:
        values = values * factor + moved
    tl.store(out + places, rounded(values, out, inverse_scale), inside)
