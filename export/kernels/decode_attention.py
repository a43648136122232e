"""Attention of one action chunk over the cached prefix and its own keys, split over keys.

A head's few queries would leave most of the chip idle, so each program takes one tile of a head's keys, and a
second launch merges what they have found: that takes less time than for the last program of a head to find
out that it is the last. The memory has little to do meanwhile: programs may ask the L2 cache for weights of a
launch to come.
"""

import triton
import triton.language as tl

from export.kernels.epilogue import rounded
from export.kernels.order import admit_next, after_previous, ask_for


@triton.jit
def decode_attention(
    q, keys, values, own_keys, own_values, length, parts, peaks, totals, soon, M, scale,
    HEADS: tl.constexpr, D: tl.constexpr, CACHED: tl.constexpr, SPLITS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, SOON: tl.constexpr,
):  # fmt: skip
    """q [M, HEADS, D], keys and values [P, D] of which the first `length` (int32 [1]) count, own ones [M, D].

    Tiles of BN: CACHED of the cache, then those of the chunk's own. scale: of the scores, times log2(e). What
    a tile finds: parts bf16 [HEADS, SPLITS, M, D], peaks and totals fp32 [HEADS, SPLITS, M]. SOON: bytes of
    `soon` to be asked for. Grid: (HEADS, SPLITS).
    """
    split = tl.program_id(1)
    if split < CACHED:
        # Another network wrote the cache (order.py).
        admit_next()
        here, dims = split * BN + tl.arange(0, BN), tl.arange(0, D)
        there = here < tl.load(length)
        k = tl.load(keys + here[:, None] * D + dims[None, :], there[:, None], 0.0)
        v = tl.load(values + here[:, None] * D + dims[None, :], there[:, None], 0.0)
        if SOON:
            ask_for(soon, SOON, split * HEADS + tl.program_id(0), CACHED * HEADS)
        after_previous()
        _attend(q, k, v, there, parts, peaks, totals, M, scale, HEADS, D, SPLITS, BM)
    else:
        here, dims = (split - CACHED) * BN + tl.arange(0, BN), tl.arange(0, D)
        there = here < M
        after_previous()
        k = tl.load(own_keys + here[:, None] * D + dims[None, :], there[:, None], 0.0)
        v = tl.load(own_values + here[:, None] * D + dims[None, :], there[:, None], 0.0)
        _attend(q, k, v, there, parts, peaks, totals, M, scale, HEADS, D, SPLITS, BM)


@triton.jit
def _attend(
    q, k, v, there, parts, peaks, totals, M, scale,
    HEADS: tl.constexpr, D: tl.constexpr, SPLITS: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """What a tile of keys finds."""
    head, split = tl.program_id(0), tl.program_id(1)
    rows, dims = tl.arange(0, BM), tl.arange(0, D)
    valid = rows < M
    x = tl.load(q + rows[:, None] * (HEADS * D) + head * D + dims[None, :], valid[:, None], 0.0)
    scores = tl.where(there[None, :], tl.dot(x, tl.trans(k)) * scale, float("-inf"))
    # A tile without a key has no peak; its part then weighs nothing.
    peak = tl.maximum(tl.max(scores, 1), -1e30)
    weights = tl.exp2(scores - peak[:, None])
    mine = (head * SPLITS + split) * M + rows
    tl.store(peaks + mine, peak, valid)
    tl.store(totals + mine, tl.sum(weights, 1), valid)
    found = tl.dot(weights.to(v.dtype), v).to(parts.dtype.element_ty)
    tl.store(parts + mine[:, None] * D + dims[None, :], found, valid[:, None])


@triton.jit
def merge(
    parts, peaks, totals, out, M, inverse_scale,
    HEADS: tl.constexpr, D: tl.constexpr, SPLITS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """out [M, HEADS, D] of all that the tiles have found. WIDTH: the power of two that holds SPLITS.

    Grid: (M, HEADS).
    """
    row, head, dims = tl.program_id(0), tl.program_id(1), tl.arange(0, D)
    tile = tl.arange(0, WIDTH)
    there, places = tile < SPLITS, (head * SPLITS + tile) * M + row
    after_previous()
    peak, total = tl.load(peaks + places, there, -1e30), tl.load(totals + places, there, 0.0)
    part = tl.load(parts + places[:, None] * D + dims[None, :], there[:, None], 0.0).to(tl.float32)
    share = tl.exp2(peak - tl.max(peak, 0))
    acc = tl.sum(part * share[:, None], 0) / tl.sum(share * total, 0)
    tl.store(out + (row * HEADS + head) * D + dims, rounded(acc, out, inverse_scale))
