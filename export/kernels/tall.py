"""Matrix product of a few rows for SM90, whose tensor cores take 64 rows of one operand at least: weights.

A program's weights are one tile, which the memory engine fetches to shared memory while the launch before
this one still runs, with no register and hardly an instruction. What is left for afterwards is short: the
rows come to shared memory, full-rate instructions read both there, and every thread stores what it has. Where
K is shared out among programs, the norm that follows adds the parts. Other chips have skinny.py.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
)

from export.kernels.hopper import by_rows, gelu, pair, product_layout
from export.kernels.order import FETCHED, admit_next, after_previous


@gluon.jit
def tall(
    w_tiles, a, w, out, keys, values, cos, sin, length, M, scale, inverse_scale,
    N: gl.constexpr, K: gl.constexpr, HEADS: gl.constexpr, D: gl.constexpr, EPILOGUE: gl.constexpr,
    SPLITS: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr, ADMIT: gl.constexpr,
):  # fmt: skip
    """As `skinny`, for the epilogues geglu, rope and parts. w comes by tiles [BN, BK].

    BM, at least 16, holds all rows. BN divides N, and D if there are heads. BK is K / SPLITS, a multiple of
    128 bytes. Grid: (N / BN, SPLITS).
    """
    BITS: gl.constexpr = w_tiles.dtype.primitive_bitwidth
    w_buf = gl.allocate_shared_memory(w_tiles.dtype, [BN, BK], w_tiles.layout)
    a_buf = gl.allocate_shared_memory(w_tiles.dtype, [BM, BK], w_tiles.layout)
    fetched = mbarrier.allocate_mbarrier()
    mbarrier.init(fetched, count=1)
    mbarrier.expect(fetched, BN * BK * BITS // 8)
    first, split = gl.program_id(0) * BN, gl.program_id(1)
    tma.async_load(w_tiles, [first, split * BK], fetched, w_buf)
    acc = gl.zeros([BN, BM], gl.float32, product_layout(BN, BM, BITS, gl.num_warps()))
    if EPILOGUE == "rope":
        half, _ = pair(acc)
        rows, pairs = _places(half, first % D // 2)
        # Values are not turned.
        turned = (rows < M) & (first < (HEADS + 1) * D)
        angles = (gl.load(length) + rows) * (D // 2) + pairs
        c, s = gl.load(cos + angles, turned, 1.0), gl.load(sin + angles, turned, 0.0)
    layout: gl.constexpr = by_rows(BK, BITS, gl.num_warps())
    lines = gl.arange(0, BM, gl.SliceLayout(1, layout))[:, None]
    summed = split * BK + gl.arange(0, BK, gl.SliceLayout(0, layout))[None, :]
    if ADMIT == FETCHED:
        mbarrier.wait(fetched, 0)
        admit_next()
    after_previous(ADMIT)
    a_buf.store(gl.load(a + lines * K + summed, lines < M, 0.0))
    fence_async_shared()
    mbarrier.wait(fetched, 0)
    acc = warpgroup_mma(w_buf, a_buf.permute([1, 0]), acc) * scale
    if EPILOGUE == "parts":
        rows, cols = _places(acc, first)
        gl.store(out + (split * M + rows) * N + cols, acc.to(out.dtype.element_ty), rows < M)
    elif EPILOGUE == "geglu":
        gate, up = pair(acc)
        y = gelu(gate, out) * up
        if out.dtype.element_ty == gl.float8e4nv:
            y *= inverse_scale
        rows, cols = _places(y, first // 2)
        gl.store(out + rows * (N // 2) + cols, y.to(out.dtype.element_ty), rows < M)
    else:
        x, y = pair(acc)
        head = first // D
        if head < HEADS:
            to = out + rows * (HEADS * D) + head * D + pairs
        else:
            to = (keys if head == HEADS else values) + rows * D + pairs
        gl.store(to, (x * c - y * s).to(out.dtype.element_ty), rows < M)
        gl.store(to + D // 2, (y * c + x * s).to(out.dtype.element_ty), rows < M)


@gluon.jit
def _places(tile, first):
    """(rows, columns) of what a thread holds of a tile, whose first dimension are columns from `first` on."""
    layout: gl.constexpr = tile.type.layout
    cols = first + gl.arange(0, tile.shape[0], gl.SliceLayout(1, layout))
    return gl.arange(0, tile.shape[1], gl.SliceLayout(0, layout))[None, :], cols[:, None]
