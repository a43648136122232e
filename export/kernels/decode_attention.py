"""Attention of one action chunk over the cached prefix and its own keys, split over keys.

A head's few queries would leave most of the chip idle, so several programs share a head's keys. The last of
them to finish, which a counter tells, merges what all have found, always in the same order: no second launch,
and the same bits every time.
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
    [M, D]. scale: of the scores, times log2(e). Scratch: parts fp32 [HEADS, SPLITS, BM, D], peaks and totals
    fp32 [HEADS, SPLITS, BM], counters int32 [HEADS], zero before and after. Grid: (HEADS, SPLITS).
    """
    head, split = tl.program_id(0), tl.program_id(1)
    rows, dims = tl.arange(0, BM), tl.arange(0, D)
    places = rows[:, None] * (HEADS * D) + head * D + dims[None, :]
    valid = (rows < M)[:, None]
    after_previous()
    x = tl.load(q + places, valid, 0.0)
    cached = tl.load(length)
    share = tl.cdiv(tl.cdiv(cached + M, SPLITS), BN) * BN
    first = split * share
    end = min(first + share, cached + M)
    most = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, D), tl.float32)
    for start in tl.range(first, end, BN):
        here = start + tl.arange(0, BN)
        old, new = here < cached, (here >= cached) & (here < end)
        before, after = here[:, None] * D + dims[None, :], (here - cached)[:, None] * D + dims[None, :]
        k = tl.load(keys + before, old[:, None], 0.0) + tl.load(own_keys + after, new[:, None], 0.0)
        v = tl.load(values + before, old[:, None], 0.0) + tl.load(own_values + after, new[:, None], 0.0)
        scores = tl.dot(x, tl.trans(k)) * scale
        scores = tl.where((here < end)[None, :], scores, float("-inf"))
        peak = tl.maximum(most, tl.max(scores, 1))
        shrink = tl.exp2(most - peak)
        weights = tl.exp2(scores - peak[:, None])
        total = total * shrink + tl.sum(weights, 1)
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None])
        most = peak
    mine = (head * SPLITS + split) * BM + rows
    tl.store(parts + mine[:, None] * D + dims[None, :], acc)
    tl.store(peaks + mine, most)
    tl.store(totals + mine, total)
    tl.debug_barrier()
    if tl.atomic_add(counters + head, 1, sem="acq_rel") == SPLITS - 1:
        tl.store(counters + head, 0)
        most = tl.full((BM,), float("-inf"), tl.float32)
        total = tl.zeros((BM,), tl.float32)
        acc = tl.zeros((BM, D), tl.float32)
        for other in tl.range(0, SPLITS):
            theirs = (head * SPLITS + other) * BM + rows
            peak = tl.load(peaks + theirs)
            higher = tl.maximum(most, peak)
            shrink, grow = tl.exp2(most - higher), tl.exp2(peak - higher)
            total = total * shrink + tl.load(totals + theirs) * grow
            part = tl.load(parts + theirs[:, None] * D + dims[None, :])
            acc = acc * shrink[:, None] + part * grow[:, None]
            most = higher
        tl.store(out + places, rounded(acc / total[:, None], out, inverse_scale), valid)
