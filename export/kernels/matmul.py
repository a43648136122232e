"""Matrix product of many rows: the prefix, where arithmetic is what takes the time.

Tiles are taken in groups of rows, so that the weights of a group stay in the L2 cache. Rows at and beyond
`length` belong to no token: their tiles are left out, and their keys and values are zeros, since a decision
must not depend on what an allocation held before.
"""

import triton
import triton.language as tl

from export.kernels.epilogue import store_geglu, store_linear, store_rope
from export.kernels.order import after_previous


@triton.jit
def matmul(
    a, w, out, bias, residual, keys, values, cos, sin, length, M, scale, inverse_scale,
    N: tl.constexpr, K: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, EPILOGUE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """a [M, K] and w [N, K], both bf16 or both FP8, summed in fp32 and multiplied by `scale`.

    EPILOGUE: linear, gelu, geglu or rope (epilogue.py). length: int32 [1], None where every row counts.
    Grid: ceil(M / BM) * ceil(N / BN).
    """
    across = tl.cdiv(N, BN)
    group = tl.program_id(0) // (GROUP * across)
    inside = tl.program_id(0) % (GROUP * across)
    height = min(tl.cdiv(M, BM) - group * GROUP, GROUP)
    row, column = group * GROUP + inside % height, inside // height
    rows, cols = row * BM + tl.arange(0, BM), column * BN + tl.arange(0, BN)
    acc = tl.zeros((BM, BN), tl.float32)
    after_previous()
    if length is None or row * BM < tl.load(length):
        summed = tl.arange(0, BK)
        left = a + (rows % M).to(tl.int64)[:, None] * K + summed[None, :]
        right = w + (cols % N).to(tl.int64)[None, :] * K + summed[:, None]
        for k in tl.range(0, K, BK):
            if K % BK == 0:
                acc = tl.dot(tl.load(left), tl.load(right), acc)
            else:
                here = summed < K - k
                x, y = tl.load(left, here[None, :], 0.0), tl.load(right, here[:, None], 0.0)
                acc = tl.dot(x, y, acc)
            left += BK
            right += BK
    acc *= scale
    if EPILOGUE == "rope":
        store_rope(acc, rows, cols, M, out, keys, values, cos, sin, 0, HEADS, D, BM, BN)
    elif EPILOGUE == "geglu":
        store_geglu(acc, rows, cols, M, N, out, inverse_scale, BM, BN)
    else:
        gelu: tl.constexpr = EPILOGUE == "gelu"
        store_linear(acc, rows, cols, M, N, out, bias, residual, None, inverse_scale, gelu)
