"""Attention of one action chunk over the cached prefix and its own keys, split over keys.

A head's few queries would leave most of the chip idle, so each program takes one tile of a head's keys, and
one more takes the chunk's own. The cache is old news when a chunk's queries come, so its tiles are read
before they do. The last program of a head to finish, which a counter tells, merges what all have found,
always in the same order: no second launch, and the same bits every time.
"""

import triton
import triton.language as tl

from export.kernels.epilogue import rounded
from export.kernels.order import after_previous


@triton.jit
def decode_attention(
    q, keys, values, own_keys, own_values, length, out, parts, peaks, totals, counters,
    M, scale, inverse_scale,
    HEADS: tl.constexpr, D: tl.constexpr, SPLITS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """q and out [M, HEADS, D], keys and values [P, D] of which the first `length` (int32 [1]) count, own ones
    [M, D]. P is at most SPLITS * BN, M at most BN. scale: of the scores, times log2(e). Scratch: parts fp32
    [HEADS, SPLITS + 1, BM, D], peaks and totals fp32 [HEADS, SPLITS + 1, BM], counters int32 [HEADS], zero
    before and after. Grid: (HEADS, SPLITS + 1).
    """
    head, split = tl.program_id(0), tl.program_id(1)
    rows, dims = tl.arange(0, BM), tl.arange(0, D)
    here = split * BN + tl.arange(0, BN)
    inside = here < tl.load(length)
    if split < SPLITS:
        k = tl.load(keys + here[:, None] * D + dims[None, :], inside[:, None], 0.0)
        v = tl.load(values + here[:, None] * D + dims[None, :], inside[:, None], 0.0)
        after_previous()
    else:
        after_previous()
        here = tl.arange(0, BN)
        inside = here < M
        k = tl.load(own_keys + here[:, None] * D + dims[None, :], inside[:, None], 0.0)
        v = tl.load(own_values + here[:, None] * D + dims[None, :], inside[:, None], 0.0)
    places = rows[:, None] * (HEADS * D) + head * D + dims[None, :]
    valid = (rows < M)[:, None]
    scores = tl.dot(tl.load(q + places, valid, 0.0), tl.trans(k)) * scale
    scores = tl.where(inside[None, :], scores, float("-inf"))
    # A tile beyond the length has no peak; its part then weighs nothing.
    peak = tl.maximum(tl.max(scores, 1), -1e30)
    weights = tl.exp2(scores - peak[:, None])
    mine = (head * (SPLITS + 1) + split) * BM + rows
    tl.store(peaks + mine, peak)
    tl.store(totals + mine, tl.sum(weights, 1))
    tl.store(parts + mine[:, None] * D + dims[None, :], tl.dot(weights.to(v.dtype), v), valid)
    tl.debug_barrier()
    if tl.atomic_add(counters + head, 1, sem="acq_rel") == SPLITS:
        tl.store(counters + head, 0)
        first = head * (SPLITS + 1) * BM + rows
        peak = tl.load(peaks + first)
        for other in tl.static_range(1, SPLITS + 1):
            peak = tl.maximum(peak, tl.load(peaks + first + other * BM))
        total = tl.zeros((BM,), tl.float32)
        acc = tl.zeros((BM, D), tl.float32)
        for other in tl.static_range(SPLITS + 1):
            theirs = first + other * BM
            share = tl.exp2(tl.load(peaks + theirs) - peak)
            total += share * tl.load(totals + theirs)
            acc += share[:, None] * tl.load(parts + theirs[:, None] * D + dims[None, :], valid, 0.0)
        tl.store(out + places, rounded(acc / total[:, None], out, inverse_scale), valid)
