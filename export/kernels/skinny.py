"""Matrix product of a few rows, one action chunk: the denoise steps, where reading weights takes the time.

A program owns BN outputs and sums over all of K, in SLICES parts that its warps take side by side, so that
nothing is left to add between programs and the order of every sum is fixed. Its weights, and all else that no
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
    a, w, out, bias, residual, gate, keys, values, cos, sin, length, dt, M, scale, inverse_scale,
    N: tl.constexpr, K: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, EPILOGUE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, SLICES: tl.constexpr, WIDTH: tl.constexpr,
    TURNED: tl.constexpr,
):  # fmt: skip
    """a [M, K] as w [N, K] has it. WIDTH: the power of two that holds K / SLICES. TURNED: SLICES is 1, WIDTH
    is K, BN divides N, and weights are the first operand, which a chip multiplies 64 rows at a time: then
    they go to shared memory as they are, without a register, and full-rate instructions read them there.

    EPILOGUE: linear, geglu, rope, or euler: out = residual + dt * (acc + bias), all fp32. gate: fp32 [N].
    length: int32 [1], position of row 0, for rope alone. Grid: (ceil(N / BN), ceil(M / BM)).
    """
    first = tl.program_id(0) * BN
    rows, cols = tl.program_id(1) * BM + tl.arange(0, BM), first + tl.arange(0, BN)
    if TURNED:
        lane = tl.arange(0, WIDTH)[None, :]
        right = tl.load(w + cols[:, None] * K + lane)
    else:
        lane = tl.arange(0, WIDTH)[None, None, :]
        part = tl.arange(0, SLICES)[:, None, None] * (K // SLICES)
        within = lane < K // SLICES
        right = tl.load(w + (cols % N)[None, :, None] * K + part + lane, within, 0.0)
    shift = load_columns(bias, cols, N, 0.0)
    if EPILOGUE == "euler":
        factor = tl.full(cols.shape, tl.load(dt), tl.float32)
    else:
        factor = load_columns(gate, cols, N, 1.0)
    if EPILOGUE == "rope":
        c, s = load_rotation(cos, sin, rows, first, M, tl.load(length), D, BN)
    after_previous()
    before = load_tile(residual, rows, cols, M, N)
    if TURNED:
        left = tl.load(a + rows[:, None] * K + lane, (rows < M)[:, None], 0.0)
        acc = tl.trans(tl.dot(right, tl.trans(left))) * scale
    else:
        left = tl.load(a + rows[None, :, None] * K + part + lane, within & (rows < M)[None, :, None], 0.0)
        parts = tl.dot(left, tl.permute(right, (0, 2, 1)), input_precision="tf32x3")
        acc = tl.sum(parts, 0) * scale
    if EPILOGUE == "rope":
        store_rope(acc, rows, first, M, out, keys, values, c, s, HEADS, D)
    elif EPILOGUE == "geglu":
        store_geglu(acc, rows, first, M, N, out, inverse_scale)
    else:
        store_linear(acc, rows, cols, M, N, out, shift, factor, before, inverse_scale, False)
