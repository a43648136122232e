"""What happens to a product's tile before it leaves the registers.

All of it is fp32 until the one rounding at the end: to bf16, or to the FP8 codes that the next product reads.
"""

import triton
import triton.language as tl

FP8_LARGEST: tl.constexpr = tl.constexpr(448.0)


@triton.jit
def gelu(x):
    """GELU in its tanh form: 0.5 (1 + tanh z) is the logistic function of 2 z."""
    return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


@triton.jit
def rounded(x, out, inverse_scale):
    """x as `out` holds it. FP8: codes of x * inverse_scale, saturated."""
    dtype: tl.constexpr = out.dtype.element_ty
    if dtype == tl.float8e4nv:
        x = tl.clamp(x * inverse_scale, -FP8_LARGEST, FP8_LARGEST)
    return x.to(dtype)


@triton.jit
def store_linear(
    acc, rows, cols, M, N: tl.constexpr, out, bias, residual, gate, inverse_scale, GELU: tl.constexpr
):
    """out [M, N] = residual + gate * gelu(acc + bias), each part where it is given. gate: fp32 [N]."""
    columns = cols < N
    mask = (rows < M)[:, None] & columns[None, :]
    if bias is not None:
        acc += tl.load(bias + cols, columns, 0.0).to(tl.float32)[None, :]
    if GELU:
        acc = gelu(acc)
    if gate is not None:
        acc *= tl.load(gate + cols, columns, 0.0)[None, :]
    places = rows[:, None] * N + cols[None, :]
    if residual is not None:
        acc += tl.load(residual + places, mask, 0.0).to(tl.float32)
    tl.store(out + places, rounded(acc, out, inverse_scale), mask)


@triton.jit
def store_geglu(acc, rows, cols, M, N: tl.constexpr, out, inverse_scale, BM: tl.constexpr, BN: tl.constexpr):
    """out [M, N / 2] = gelu(gate) * up, of columns gate 0, up 0, gate 1, up 1, ..."""
    gate, up = acc.reshape(BM, BN // 2, 2).split()
    pairs = tl.min(cols, 0) // 2 + tl.arange(0, BN // 2)
    mask = (rows < M)[:, None] & (pairs < N // 2)[None, :]
    places = rows[:, None] * (N // 2) + pairs[None, :]
    tl.store(out + places, rounded(gelu(gate) * up, out, inverse_scale), mask)


@triton.jit
def store_rope(
    acc, rows, cols, M, out, keys, values, cos, sin, start,
    HEADS: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Rotates and spreads a fused q/k/v product, whose columns are HEADS queries, a key and a value of D.

    The columns of queries and keys come as 0, D/2, 1, D/2 + 1, ...: the halves that a rotation mixes. They
    leave in their own order: out [M, HEADS * D] and keys [M, D]. values [M, D]. cos, sin: fp32
    [positions, D / 2], row r being at position `start` + r. A tile belongs to one of the three: BN divides D.
    """
    first = tl.min(cols, 0)
    head = first // D
    if head == HEADS + 1:
        inside = first - head * D + tl.arange(0, BN)
        whole = (rows < M)[:, None] & (inside < D)[None, :]
        tl.store(values + rows[:, None] * D + inside[None, :], acc.to(values.dtype.element_ty), whole)
    else:
        a, b = acc.reshape(BM, BN // 2, 2).split()
        pairs = (first - head * D) // 2 + tl.arange(0, BN // 2)
        mask = (rows < M)[:, None] & (pairs < D // 2)[None, :]
        angles = (start + rows)[:, None] * (D // 2) + pairs[None, :]
        c, s = tl.load(cos + angles, mask, 0.0), tl.load(sin + angles, mask, 0.0)
        low, high = (a * c - b * s).to(out.dtype.element_ty), (b * c + a * s).to(out.dtype.element_ty)
        if head == HEADS:
            key = rows[:, None] * D + pairs[None, :]
            tl.store(keys + key, low, mask)
            tl.store(keys + key + D // 2, high, mask)
        else:
            places = rows[:, None] * (HEADS * D) + head * D + pairs[None, :]
            tl.store(out + places, low, mask)
            tl.store(out + places + D // 2, high, mask)
