"""Attention of one action chunk over the cached prefix and its own keys, split over keys.

A head's few queries would leave most of the chip idle, so each program takes one tile of a head's keys, and a
second launch merges what they have found: that takes less time than for the last program of a head to find
out that it is the last.
"""

import triton
import triton.language as tl

from export.kernels.epilogue import rounded
from export.kernels.order import after_previous, ask_ahead

LINE: tl.constexpr = tl.constexpr(64)
"""Of the L2 cache, in elements."""


@triton.jit
def decode_attention(
    q, keys, values, own_keys, own_values, length, parts, peaks, totals, M, scale,
    HEADS: tl.constexpr, D: tl.constexpr, CACHED: tl.constexpr, SPLITS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """q [M, HEADS, D], keys and values [P, D] of which the first `length` (int32 [1]) count, own ones [M, D].

    Tiles of BN: CACHED of the cache, then those of the chunk's own. scale: of the scores, times log2(e). What
    a tile finds: parts bf16 [HEADS, SPLITS, M, D], peaks and totals fp32 [HEADS, SPLITS, M]. Grid: (HEADS,
    SPLITS).
    """
    head, split = tl.program_id(0), tl.program_id(1)
    rows, dims, here = tl.arange(0, BM), tl.arange(0, D), tl.arange(0, BN)
    if split < CACHED:
        here += split * BN
        tile_keys, tile_values, count = keys, values, tl.load(length)
    else:
        here += (split - CACHED) * BN
        tile_keys, tile_values, count = own_keys, own_values, M
    there, valid = here < count, rows < M
    if split < CACHED:
        # A tile's heads share its keys: each asks for some of them.
        share: tl.constexpr = max(BN // triton.next_power_of_2(HEADS), 1)
        mine = (split * BN + head * share + tl.arange(0, share)) % count
        lines = mine[:, None] * D + tl.arange(0, max(D // LINE, 1))[None, :] * LINE
        ask_ahead(keys + lines)
        ask_ahead(values + lines)
    after_previous()
    k = tl.load(tile_keys + here[:, None] * D + dims[None, :], there[:, None], 0.0)
    x = tl.load(q + rows[:, None] * (HEADS * D) + head * D + dims[None, :], valid[:, None], 0.0)
    v = tl.load(tile_values + here[:, None] * D + dims[None, :], there[:, None], 0.0)
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
