"""Norms of the prefix, a row a program: RMS without a weight, which the next matrix holds, or LayerNorm."""

import triton
import triton.language as tl

from export.kernels.epilogue import rounded
from export.kernels.order import after_previous

EPSILON: tl.constexpr = tl.constexpr(1e-6)


@triton.jit
def norm(x, weight, bias, out, inverse_scale, N: tl.constexpr, WIDTH: tl.constexpr):
    """out [rows, N] of x [rows, N] bf16. weight, bias: bf16 [N] of a LayerNorm, None for RMS. WIDTH: the
    power of two that holds N. Grid: rows."""
    columns = tl.arange(0, WIDTH)
    inside = columns < N
    places = tl.program_id(0) * N + columns
    after_previous()
    values = tl.load(x + places, inside, 0.0).to(tl.float32)
    if weight is not None:
        values = tl.where(inside, values - tl.sum(values, 0) / N, 0.0)
    values *= tl.rsqrt(tl.sum(values * values, 0) / N + EPSILON)
    if weight is not None:
        values *= tl.load(weight + columns, inside, 0.0).to(tl.float32)
        values += tl.load(bias + columns, inside, 0.0).to(tl.float32)
    tl.store(out + places, rounded(values, out, inverse_scale), inside)
