"""Matrix product of a few rows, one action chunk: the denoise steps, where reading weights takes the time.

A program owns BN outputs and sums over all of K, in SLICES parts that its warps take side by side, so that
nothing is left to add between programs and the order of every sum is fixed. The norm before the product is
done by each program anew: the rows are few, and a launch saved is worth more than the arithmetic.
"""

import triton
import triton.language as tl

from export.kernels.epilogue import rounded, store_geglu, store_linear, store_rope
from export.kernels.order import after_previous

EPSILON: tl.constexpr = tl.constexpr(1e-6)


@triton.jit
def skinny(
    a, w, out, bias, residual, modulation, gate, keys, values, cos, sin, length, dt, M,
    scale, a_inverse_scale, inverse_scale,
    N: tl.constexpr, K: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, EPILOGUE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, SLICES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """a [M, K] as w [N, K] has it, or bf16 and not yet normed where `modulation` is given: fp32 scale [K] and
    shift [K], adaRMS before the product. WIDTH: the power of two that holds K / SLICES.

    EPILOGUE: linear, geglu, rope, or euler: out = residual + dt * (acc + bias), all fp32. gate: fp32 [N].
    length: int32 [1], position of row 0, for rope alone. Grid: ceil(N / BN).
    """
    rows, cols = tl.arange(0, BM), tl.program_id(0) * BN + tl.arange(0, BN)
    lane = tl.arange(0, WIDTH)[None, None, :]
    part = tl.arange(0, SLICES)[:, None, None] * (K // SLICES)
    within = lane < K // SLICES
    right = tl.load(w + (cols % N)[None, :, None] * K + part + lane, within, 0.0)
    if modulation is not None:
        factor = 1 + tl.load(modulation + part + lane, within, 0.0)
        shift = tl.load(modulation + K + part + lane, within, 0.0)
    after_previous()
    x = tl.load(a + rows[None, :, None] * K + part + lane, within & (rows < M)[None, :, None], 0.0)
    if modulation is not None:
        x = x.to(tl.float32)
        mean = tl.sum(tl.sum(x * x, 2), 0) / K
        x *= tl.rsqrt(mean + EPSILON)[None, :, None]
        x = rounded(x * factor + shift, w, a_inverse_scale)
    parts = tl.dot(x, tl.permute(right, (0, 2, 1)), input_precision="ieee")
    acc = tl.sum(parts, 0) * scale
    if EPILOGUE == "rope":
        start = tl.load(length)
        store_rope(acc, rows, cols, M, out, keys, values, cos, sin, start, HEADS, D, BM, BN)
    elif EPILOGUE == "geglu":
        store_geglu(acc, rows, cols, M, N, out, inverse_scale, BM, BN)
    elif EPILOGUE == "euler":
        mask = (rows < M)[:, None] & (cols < N)[None, :]
        places = rows[:, None] * N + cols[None, :]
        velocity = acc + tl.load(bias + cols, cols < N, 0.0)[None, :]
        before = tl.load(residual + places, mask, 0.0)
        tl.store(out + places, before + tl.load(dt) * velocity, mask)
    else:
        store_linear(acc, rows, cols, M, N, out, bias, residual, gate, inverse_scale, False)
