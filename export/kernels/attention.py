"""Attention of many queries, vision's and the prefix's, with an online softmax: scores never leave the chip.

The prefix's eight query heads share one key head, so its queries are simply eight times as many rows of one
head. Vision has a head of 72: a product of powers of two takes it as 64 and 8 more.
"""

import triton
import triton.language as tl

from export.kernels.epilogue import rounded
from export.kernels.order import after_previous


@triton.jit
def attention(
    q, k, v, out, length, scale, inverse_scale, ROWS, KEYS, HEADS,
    Q_ROW: tl.constexpr, Q_HEAD: tl.constexpr, Q_BATCH: tl.constexpr,
    K_ROW: tl.constexpr, K_HEAD: tl.constexpr, K_BATCH: tl.constexpr,
    OUT_ROW: tl.constexpr, OUT_HEAD: tl.constexpr, OUT_BATCH: tl.constexpr,
    D: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Queries [ROWS, D] against keys and values [KEYS, D] of each head and batch; strides in elements.

    D is MAIN and, unless REST is 0, up to REST more; both are powers of two. length: int32 [1], keys from
    there on are not attended to; None for all. scale: of the scores, times log2(e).
    Grid: (ceil(ROWS / BM), HEADS * batches).
    """
    batch, head = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    main, rest = tl.arange(0, MAIN), MAIN + tl.arange(0, max(REST, 1))
    after_previous()
    keys = KEYS if length is None else min(tl.load(length), KEYS)
    q += batch * Q_BATCH + head * Q_HEAD + rows[:, None] * Q_ROW
    valid = (rows < ROWS)[:, None]
    q_main = tl.load(q + main[None, :], valid, 0.0)
    if REST:
        q_rest = tl.load(q + rest[None, :], valid & (rest < D)[None, :], 0.0)
        acc_rest = tl.zeros((BM, REST), tl.float32)
    offset = batch * K_BATCH + head * K_HEAD
    most = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, MAIN), tl.float32)
    for start in tl.range(0, keys, BN):
        here = start + tl.arange(0, BN)
        inside = here < keys
        places = offset + here * K_ROW
        scores = tl.dot(q_main, tl.load(k + places[None, :] + main[:, None], inside[None, :], 0.0))
        if REST:
            tail = inside[None, :] & (rest < D)[:, None]
            scores = tl.dot(q_rest, tl.load(k + places[None, :] + rest[:, None], tail, 0.0), scores)
        scores = tl.where(inside[None, :], scores * scale, float("-inf"))
        peak = tl.maximum(most, tl.max(scores, 1))
        shrink = tl.exp2(most - peak)
        weights = tl.exp2(scores - peak[:, None])
        total = total * shrink + tl.sum(weights, 1)
        weights = weights.to(v.dtype.element_ty)
        part = tl.load(v + places[:, None] + main[None, :], inside[:, None], 0.0)
        acc = tl.dot(weights, part, acc * shrink[:, None])
        if REST:
            tail = inside[:, None] & (rest < D)[None, :]
            part = tl.load(v + places[:, None] + rest[None, :], tail, 0.0)
            acc_rest = tl.dot(weights, part, acc_rest * shrink[:, None])
        most = peak
    out += batch * OUT_BATCH + head * OUT_HEAD + rows[:, None] * OUT_ROW
    tl.store(out + main[None, :], rounded(acc / total[:, None], out, inverse_scale), valid)
    if REST:
        valid &= (rest < D)[None, :]
        tl.store(out + rest[None, :], rounded(acc_rest / total[:, None], out, inverse_scale), valid)
