"""What happens to a product's tile before it leaves the registers.

All of it is fp32 until the one rounding at the end: to bf16, or to the FP8 codes that the next product reads.
"""

import triton
import triton.language as tl

PAIRED: tl.constexpr = tl.constexpr(8)
"""Columns of gate that come together, and then as many of up; so it is with the two halves that a rotation
mixes. A thread holds those that belong together."""


@triton.jit
def gelu(x):
    """GELU in its tanh form: 0.5 (1 + tanh z) is the logistic function of 2 z."""
    return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


@triton.jit
def rounded(x, out, inverse_scale):
    """x as `out` holds it. FP8: codes of x * inverse_scale, which the chip's own conversion saturates."""
    dtype: tl.constexpr = out.dtype.element_ty
    if dtype == tl.float8e4nv:
        x *= inverse_scale
    return x.to(dtype)


@triton.jit
def load_columns(values, cols, N: tl.constexpr, absent: tl.constexpr):
    """fp32 of `values` [N] at `cols`, or `absent` where there are none."""
    if values is None:
        found = tl.full(cols.shape, absent, tl.float32)
    else:
        found = tl.load(values + cols, cols < N, 0.0).to(tl.float32)
    return found


@triton.jit
def load_tile(values, rows, cols, M, N: tl.constexpr):
    """fp32 of `values` [M, N] at a tile, zeros where there are none."""
    if values is None:
        found = tl.zeros((rows.shape[0], cols.shape[0]), tl.float32)
    else:
        mask = (rows < M)[:, None] & (cols < N)[None, :]
        found = tl.load(values + rows[:, None] * N + cols[None, :], mask, 0.0).to(tl.float32)
    return found


@triton.jit
def load_rotation(cos, sin, rows, first, M, start, HEADS: tl.constexpr, D: tl.constexpr, BN: tl.constexpr):
    """The angles of a tile of BN columns from `first` on, within a head of D, whose row r is at position
    `start` + r: (cos, sin), one a pair of columns; of values, which are not turned, 1 and 0. cos, sin: fp32
    [positions, D / 2]."""
    pairs = first % D // 2 + tl.arange(0, BN // 2)
    angles = (start + rows)[:, None] * (D // 2) + pairs[None, :]
    turned = (rows < tl.where(first < (HEADS + 1) * D, M, 0))[:, None]
    return tl.load(cos + angles, turned, 1.0), tl.load(sin + angles, turned, 0.0)


@triton.jit
def store_linear(
    acc, rows, cols, M, N: tl.constexpr, out, shift, gate, residual, inverse_scale, GELU: tl.constexpr
):
    """out [M, N] = residual + gate * gelu(acc + shift)."""
    acc += shift[None, :]
    if GELU:
        acc = gelu(acc)
    acc = acc * gate[None, :] + residual
    mask = (rows < M)[:, None] & (cols < N)[None, :]
    tl.store(out + rows[:, None] * N + cols[None, :], rounded(acc, out, inverse_scale), mask)


@triton.jit
def store_geglu(acc, rows, first, M, N: tl.constexpr, out, inverse_scale):
    """out [M, N / 2] = gelu(gate) * up, of PAIRED columns of gate, as many of up, and so on. first: the
    tile's own."""
    half: tl.constexpr = acc.shape[1] // 2
    gate, up = _pair(acc)
    cols = first // 2 + tl.arange(0, half)
    mask = (rows < M)[:, None] & (cols < N // 2)[None, :]
    places = rows[:, None] * (N // 2) + cols[None, :]
    tl.store(out + places, rounded(gelu(gate) * up, out, inverse_scale), mask)


@triton.jit
def store_rope(acc, rows, first, M, out, keys, values, c, s, HEADS: tl.constexpr, D: tl.constexpr):
    """Rotates and spreads a fused q/k/v product, whose columns are HEADS queries, a key and a value of D.

    Of each, PAIRED columns of the first half come together, then as many of the other. They leave in their
    own order: out [M, HEADS * D], keys and values [M, D]. first: the tile's own first column. c, s: its
    rotation. A tile belongs to one head: its width divides D.
    """
    a, b = _pair(acc)
    head = first // D
    if head < HEADS:
        places = out + head * D
        width = HEADS * D
    else:
        places = keys if head == HEADS else values
        width = D
    places += rows[:, None] * width + (first % D // 2 + tl.arange(0, acc.shape[1] // 2))[None, :]
    mask = (rows < M)[:, None]
    tl.store(places, (a * c - b * s).to(out.dtype.element_ty), mask)
    tl.store(places + D // 2, (b * c + a * s).to(out.dtype.element_ty), mask)


@triton.jit
def _pair(acc):
    """What belongs together of columns that come PAIRED and PAIRED."""
    rows: tl.constexpr = acc.shape[0]
    half: tl.constexpr = acc.shape[1] // 2
    a, b = acc.reshape(rows, half // PAIRED, 2, PAIRED).trans(0, 1, 3, 2).split()
    return a.reshape(rows, half), b.reshape(rows, half)
