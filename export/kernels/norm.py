"""Norms, a row a program, and what comes just before one: the sum of a product's parts, and the residual.

RMS without a weight, which the next matrix holds; RMS with a step's modulation, adaRMS; or LayerNorm.
"""

import triton
import triton.language as tl

from export.kernels.epilogue import rounded
from export.kernels.order import LINE, after_previous, ask_ahead, ask_for

EPSILON: tl.constexpr = tl.constexpr(1e-6)


@triton.jit
def _added(a, b, c, d):
    return a + c, b + d


@triton.jit
def norm(
    x, parts, shift, gate, summed, weight, bias, next_weight, next_bias, modulation, out, soon, later, ROWS,
    inverse_scale,
    N: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr, FOLLOWED: tl.constexpr,
    SOON_BYTES: tl.constexpr, LATER_BYTES: tl.constexpr, ADMIT: tl.constexpr, SOON: tl.constexpr,
):  # fmt: skip
    """out [ROWS, N] of x [ROWS, N], or of x + gate * (shift + parts), rounded to bf16 and stored to `summed`
    too.

    parts: [SPLITS, ROWS, N]. shift: [N]. These and x: bf16, or fp32 from the patch embedding. gate: fp32 [N],
    None for 1. weight, bias: bf16 [N] of a LayerNorm, next_weight and next_bias those of the next one.
    modulation: fp32 scale [N], shift [N] and gate [N] of adaRMS, and those of the next norm behind them if
    FOLLOWED. WIDTH: the power of two that holds N. soon, later: weights of launches to come, of which the
    first BYTES are asked for if SOON. Grid: ROWS.
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
    if shift is not None:
        also = tl.load(shift + columns, inside, 0.0).to(tl.float32)
    if gate is not None:
        share = tl.load(gate + columns, inside, 0.0)
    # What the next norm reads is read once and not in the cache.
    if FOLLOWED and tl.program_id(0) == 0:
        # It adds with the gate of this one's.
        line: tl.constexpr = LINE // 4
        lines = tl.minimum(tl.arange(0, 4 * WIDTH // line), 4 * N // line - 1)
        ask_ahead(modulation + 2 * N + lines * line)
    if next_weight is not None and tl.program_id(0) == 0:
        few: tl.constexpr = LINE // 2
        lines = tl.minimum(tl.arange(0, (WIDTH + few - 1) // few), (N - 1) // few) * few
        ask_ahead(next_weight + lines)
        ask_ahead(next_bias + lines)
    if SOON:
        ask_for(soon, SOON_BYTES, tl.program_id(0), tl.num_programs(0))
        ask_for(later, LATER_BYTES, tl.program_id(0), tl.num_programs(0))
    after_previous(ADMIT)
    values = tl.load(x + places, inside, 0.0).to(tl.float32)
    if parts is not None:
        added = tl.zeros((WIDTH,), tl.float32)
        for split in tl.static_range(SPLITS):
            added += tl.load(parts + split * ROWS * N + places, inside, 0.0).to(tl.float32)
        if shift is not None:
            added += also
        values += added * share if gate is not None else added
        stored = values.to(summed.dtype.element_ty)
        tl.store(summed + places, stored, inside)
        values = stored.to(tl.float32)
    if weight is not None:
        # Both sums with one barrier.
        total, squares = tl.reduce((values, values * values), 0, _added)
        mean = total / N
        values = (values - mean) * tl.rsqrt(squares / N - mean * mean + EPSILON)
    else:
        values *= tl.rsqrt(tl.sum(values * values, 0) / N + EPSILON)
    if modulation is not None or weight is not None:
        values = values * factor + moved
    tl.store(out + places, rounded(values, out, inverse_scale), inside)
