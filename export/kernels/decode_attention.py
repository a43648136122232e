"""Attention of one action chunk over the cached prefix and its own keys, split over keys.

A head's few queries would leave most of the chip idle, so each program takes one tile of a head's keys. The
cache is old news when a chunk's queries come, and is read before they do. The last program of a head to
finish, which a counter tells, merges what all have found, always in the same order: no second launch, and the
same bits every time.
"""

import triton
import triton.language as tl

from export.kernels.epilogue import rounded
from export.kernels.order import after_previous


@triton.jit
def decode_attention(
    q, keys, values, own_keys, own_values, length, out, parts, peaks, totals, counters,
    M, scale, inverse_scale,
    HEADS: tl.constexpr, D: tl.constexpr, SPLITS: tl.constexpr, WIDTH: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """q and out [M, HEADS, D], keys and values [P, D] of which the first `length` (int32 [1]) count, own ones
    [M, D]. P + M is at most SPLITS * BN. scale: of the scores, times log2(e). Scratch: parts fp32 [HEADS,
    SPLITS, BM, D], peaks and totals fp32 [HEADS, SPLITS, BM], counters int32 [HEADS], zero before and after.
    WIDTH: the power of two that holds SPLITS. CHUNK: rows merged at a time. Grid: (HEADS, SPLITS).
    """
    head, split = tl.program_id(0), tl.program_id(1)
    rows, dims = tl.arange(0, BM), tl.arange(0, D)
    here, cached = split * BN + tl.arange(0, BN), tl.load(length)
    old, new = (here < cached)[:, None], ((here >= cached) & (here < cached + M))[:, None]
    before, after = here[:, None] * D + dims[None, :], (here - cached)[:, None] * D + dims[None, :]
    k, v = tl.load(keys + before, old, 0.0), tl.load(values + before, old, 0.0)
    after_previous()
    k, v = k + tl.load(own_keys + after, new, 0.0), v + tl.load(own_values + after, new, 0.0)
    valid = (rows < M)[:, None]
    x = tl.load(q + rows[:, None] * (HEADS * D) + head * D + dims[None, :], valid, 0.0)
    scores = tl.where((here < cached + M)[None, :], tl.dot(x, tl.trans(k)) * scale, float("-inf"))
    # A tile without a key has no peak; its part then weighs nothing.
    peak = tl.maximum(tl.max(scores, 1), -1e30)
    weights = tl.exp2(scores - peak[:, None])
    parts += head * (SPLITS * BM * D)
    peaks += head * (SPLITS * BM)
    totals += head * (SPLITS * BM)
    tl.store(peaks + split * BM + rows, peak)
    tl.store(totals + split * BM + rows, tl.sum(weights, 1))
    tl.store(parts + (split * BM + rows)[:, None] * D + dims[None, :], tl.dot(weights.to(v.dtype), v), valid)
    tl.debug_barrier()
    if tl.atomic_add(counters + head, 1, sem="acq_rel") == SPLITS - 1:
        tl.store(counters + head, 0)
        for first in tl.static_range(0, BM, CHUNK):
            some = first + tl.arange(0, CHUNK)
            places = tl.arange(0, WIDTH)[:, None] * BM + some[None, :]
            there = tl.arange(0, WIDTH)[:, None] < SPLITS
            part = tl.load(
                parts + places[:, :, None] * D + dims[None, None, :],
                (there & (some < M)[None, :])[:, :, None],
                0.0,
            )
            found, total = tl.load(peaks + places, there, -1e30), tl.load(totals + places, there, 0.0)
            share = tl.exp2(found - tl.max(found, 0)[None, :])
            acc = tl.sum(part * share[:, :, None], 0) / tl.sum(share * total, 0)[:, None]
            target = out + some[:, None] * (HEADS * D) + head * D + dims[None, :]
            tl.store(target, rounded(acc, out, inverse_scale), (some < M)[:, None])
