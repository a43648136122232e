"""Matrix product of many rows: the prefix, where arithmetic is what takes the time.

Tiles are taken in groups of rows, so that the weights of a group stay in the L2 cache; those of the last row
may be lower. Where there are fewer tiles than the chip can hold, several programs share one, each summing a
part of K; the last to finish, which a counter tells, adds the parts, always in the same order. Rows at and
beyond `length` belong to no token: their tiles are left out, and their keys and values are zeros, since a
decision must not depend on what an allocation held before.
"""

import triton
import triton.language as tl

from export.kernels.epilogue import (
    load_columns,
    load_rotation,
    load_tile,
    store_geglu,
    store_linear,
    store_rope,
)
from export.kernels.order import after_previous


@triton.jit
def matmul(
    a, w, out, bias, residual, keys, values, cos, sin, length, parts, counters, M, scale, inverse_scale,
    N: tl.constexpr, K: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, EPILOGUE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, SPLITS: tl.constexpr,
    LAST: tl.constexpr,
):  # fmt: skip
    """a [M, K] and w [N, K], both bf16 or both FP8, summed in fp32 and multiplied by `scale`.

    EPILOGUE: linear, gelu, geglu or rope (epilogue.py). length: int32 [1], None where every row counts. BK
    divides K. LAST: rows of the last row of tiles, BM or fewer. Scratch: parts fp32 [tiles, SPLITS, BM, BN],
    counters int32 [tiles], zero before and after. Grid: (ceil(M / BM) * ceil(N / BN), SPLITS).
    """
    tile, split = tl.program_id(0), tl.program_id(1)
    across, down = tl.cdiv(N, BN), tl.cdiv(M, BM)
    group, inside = tile // (GROUP * across), tile % (GROUP * across)
    height = min(down - group * GROUP, GROUP)
    row, column = group * GROUP + inside % height, inside // height
    cols = column * BN + tl.arange(0, BN)
    if parts is not None:
        parts += tile * (SPLITS * BM * BN)
        counters += tile
    if LAST < BM and row == down - 1:
        _tile(
            row * BM + tl.arange(0, LAST), cols, split,
            a, w, out, bias, residual, keys, values, cos, sin, length, parts, counters, M, scale,
            inverse_scale, N, K, HEADS, D, EPILOGUE, BK, SPLITS,
        )  # fmt: skip
    else:
        _tile(
            row * BM + tl.arange(0, BM), cols, split,
            a, w, out, bias, residual, keys, values, cos, sin, length, parts, counters, M, scale,
            inverse_scale, N, K, HEADS, D, EPILOGUE, BK, SPLITS,
        )  # fmt: skip


@triton.jit
def _tile(
    rows, cols, split,
    a, w, out, bias, residual, keys, values, cos, sin, length, parts, counters, M, scale, inverse_scale,
    N: tl.constexpr, K: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, EPILOGUE: tl.constexpr,
    BK: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    acc = tl.zeros((rows.shape[0], cols.shape[0]), tl.float32)
    steps: tl.constexpr = K // BK
    share: tl.constexpr = (steps + SPLITS - 1) // SPLITS
    summed = split * (share * BK) + tl.arange(0, BK)
    left = a + (rows % M)[:, None] * K + summed[None, :]
    right = w + (cols % N).to(tl.int64)[None, :] * K + summed[:, None]
    count = share if steps % SPLITS == 0 else min(share, steps - split * share)
    after_previous()
    if length is None or tl.min(rows, 0) < tl.load(length):
        for _ in tl.range(0, count):
            acc = tl.dot(tl.load(left), tl.load(right), acc)
            left += BK
            right += BK
    if SPLITS == 1:
        _finish(acc * scale, rows, cols, out, bias, residual, keys, values, cos, sin, M, inverse_scale,
                N, HEADS, D, EPILOGUE)  # fmt: skip
    else:
        size: tl.constexpr = rows.shape[0] * cols.shape[0]
        place = tl.arange(0, rows.shape[0])[:, None] * cols.shape[0] + tl.arange(0, cols.shape[0])[None, :]
        tl.store(parts + split * size + place, acc)
        tl.debug_barrier()
        if tl.atomic_add(counters, 1, sem="acq_rel") == SPLITS - 1:
            tl.store(counters, 0)
            acc = tl.load(parts + place)
            for other in tl.static_range(1, SPLITS):
                acc += tl.load(parts + other * size + place)
            _finish(acc * scale, rows, cols, out, bias, residual, keys, values, cos, sin, M, inverse_scale,
                    N, HEADS, D, EPILOGUE)  # fmt: skip


@triton.jit
def _finish(
    acc, rows, cols, out, bias, residual, keys, values, cos, sin, M, inverse_scale,
    N: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, EPILOGUE: tl.constexpr,
):  # fmt: skip
    if EPILOGUE == "rope":
        c, s = load_rotation(cos, sin, rows, cols, M, 0, D)
        store_rope(acc, rows, cols, M, out, keys, values, c, s, HEADS, D)
    elif EPILOGUE == "geglu":
        store_geglu(acc, rows, cols, M, N, out, inverse_scale)
    else:
        shift, before = load_columns(bias, cols, N, 0.0), load_tile(residual, rows, cols, M, N)
        gate = load_columns(None, cols, N, 1.0)
        store_linear(acc, rows, cols, M, N, out, shift, before, gate, inverse_scale, EPILOGUE == "gelu")
