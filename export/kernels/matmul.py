"""Matrix product of many rows: the prefix, where arithmetic is what takes the time.

Tiles are taken in groups of rows, so that the weights of a group stay in the L2 cache; those of the last row
may be lower. Where there are fewer tiles than the chip can hold, several programs share one, each summing a
part of K: the norm that follows adds the parts. Rows at and beyond `length` belong to no token: a tile of
nothing else is left out, and its keys and values are zeros, since a decision must not depend on what an
allocation held before.
"""

import triton
import triton.language as tl

from export.kernels.epilogue import load_columns, load_rotation, store_geglu, store_linear, store_rope
from export.kernels.order import after_previous, ask_ahead


@triton.jit
def matmul(
    a, w, out, bias, keys, values, cos, sin, length, M, scale, inverse_scale,
    N: tl.constexpr, K: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, EPILOGUE: tl.constexpr,
    SPLITS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    LAST: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """a [M, K] and w [N, K], both bf16 or both FP8, summed in fp32 and multiplied by `scale`.

    EPILOGUE: linear, gelu, geglu or rope (epilogue.py), or parts: out bf16 or fp32 [SPLITS, M, N]. SPLITS: 1
    for all others. length: int32 [1], None where every row counts. BK divides K. LAST: rows of the last row
    of tiles, BM or fewer. AHEAD: asks for the weights before it waits, those of a column of tiles shared out
    among its rows; BK is a line of the L2 cache then. Grid: (ceil(M / BM) * ceil(N / BN), SPLITS).
    """
    tile, split = tl.program_id(0), tl.program_id(1)
    across, down = tl.cdiv(N, BN), tl.cdiv(M, BM)
    group, inside = tile // (GROUP * across), tile % (GROUP * across)
    height = min(down - group * GROUP, GROUP)
    row, column = group * GROUP + inside % height, inside // height
    if AHEAD:
        lines = w + ((column * BN + tl.arange(0, BN)) % N).to(tl.int64) * K
        steps: tl.constexpr = K // BK
        share: tl.constexpr = (steps + SPLITS - 1) // SPLITS
        for step in tl.range(split * share + row, min(split * share + share, steps), down):
            ask_ahead(lines + step * BK)
    if LAST < BM and row == down - 1:
        _tile(
            a, w, out, bias, keys, values, cos, sin, length, M, scale, inverse_scale,
            row * BM, column * BN, split, N, K, HEADS, D, EPILOGUE, SPLITS, LAST, BN, BK,
        )  # fmt: skip
    else:
        _tile(
            a, w, out, bias, keys, values, cos, sin, length, M, scale, inverse_scale,
            row * BM, column * BN, split, N, K, HEADS, D, EPILOGUE, SPLITS, BM, BN, BK,
        )  # fmt: skip


@triton.jit
def _tile(
    a, w, out, bias, keys, values, cos, sin, length, M, scale, inverse_scale, first_row, first, split,
    N: tl.constexpr, K: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, EPILOGUE: tl.constexpr,
    SPLITS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """That of BM rows and BN columns at (first_row, first), over one split of K."""
    rows, cols = first_row + tl.arange(0, BM), first + tl.arange(0, BN)
    acc = tl.zeros((BM, BN), tl.float32)
    steps: tl.constexpr = K // BK
    share: tl.constexpr = (steps + SPLITS - 1) // SPLITS
    summed = split * (share * BK) + tl.arange(0, BK)
    left = a + (rows % M)[:, None] * K + summed[None, :]
    right = w + (cols % N).to(tl.int64)[None, :] * K + summed[:, None]
    count = share if steps % SPLITS == 0 else min(share, steps - split * share)
    after_previous()
    if length is None or first_row < tl.load(length):
        for _ in tl.range(0, count):
            acc = tl.dot(tl.load(left), tl.load(right), acc)
            left += BK
            right += BK
    acc *= scale
    if EPILOGUE == "parts":
        mask = (rows < M)[:, None] & (cols < N)[None, :]
        tl.store(out + (split * M + rows)[:, None] * N + cols[None, :], acc.to(out.dtype.element_ty), mask)
    elif EPILOGUE == "rope":
        c, s = load_rotation(cos, sin, rows, first, M, 0, HEADS, D, BN)
        store_rope(acc, rows, first, M, out, keys, values, c, s, HEADS, D)
    elif EPILOGUE == "geglu":
        store_geglu(acc, rows, first, M, N, out, inverse_scale)
    else:
        shift, gate = load_columns(bias, cols, N, 0.0), load_columns(None, cols, N, 1.0)
        store_linear(acc, rows, cols, M, N, out, shift, gate, 0.0, inverse_scale, EPILOGUE == "gelu")
