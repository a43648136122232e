"""Matrix product of a few rows, one action chunk: the denoise steps, where reading weights takes the time.

A program owns BN outputs and sums over its share of K, in SLICES parts that its warps take side by side;
where K is shared out among programs, the norm that follows adds the parts. Its weights, and all else that no
launch writes, it reads before it waits. A norm stays a launch of its own: the 1 us that it takes is less than
what every program would spend on doing it anew.
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
def skinny(
    a, w, out, bias, residual, keys, values, cos, sin, length, dt, M, scale, inverse_scale,
    N: tl.constexpr, K: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, EPILOGUE: tl.constexpr,
    SPLITS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, SLICES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """a [M, K] as w [N, K] has it. WIDTH: the power of two that holds K / SPLITS / SLICES.

    EPILOGUE: linear, geglu, rope, euler: out = residual + dt * (acc + bias), all fp32, or parts: out bf16
    [SPLITS, M, N]. SPLITS: 1 for all others. length: int32 [1], position of row 0, for rope alone.
    Grid: (ceil(N / BN), ceil(M / BM), SPLITS).
    """
    first = tl.program_id(0) * BN
    rows, cols = tl.program_id(1) * BM + tl.arange(0, BM), first + tl.arange(0, BN)
    split, share = tl.program_id(2), K // SPLITS
    lane = tl.arange(0, WIDTH)[None, None, :]
    part = split * share + tl.arange(0, SLICES)[:, None, None] * (share // SLICES)
    within = lane < share // SLICES
    right = tl.load(w + (cols % N)[None, :, None] * K + part + lane, within, 0.0)
    shift = load_columns(bias, cols, N, 0.0)
    factor = tl.full(cols.shape, tl.load(dt) if EPILOGUE == "euler" else 1.0, tl.float32)
    if EPILOGUE == "rope":
        c, s = load_rotation(cos, sin, rows, first, M, tl.load(length), HEADS, D, BN)
    after_previous()
    before = load_tile(residual, rows, cols, M, N)
    left = tl.load(a + rows[None, :, None] * K + part + lane, within & (rows < M)[None, :, None], 0.0)
    slices = tl.dot(left, tl.permute(right, (0, 2, 1)), input_precision="tf32x3")
    acc = tl.sum(slices, 0) * scale
    if EPILOGUE == "rope":
        store_rope(acc, rows, first, M, out, keys, values, c, s, HEADS, D)
    elif EPILOGUE == "geglu":
        store_geglu(acc, rows, first, M, N, out, inverse_scale)
    else:
        out += split * M * N
        store_linear(acc, rows, cols, M, N, out, shift, factor, before, inverse_scale, False)
