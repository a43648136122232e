"""Attention of vision's heads for SM90, whose 256 keys lie in shared memory at once: the softmax sees all of
them, and the memory engine fetches them in one go.

A head of 72 is 64 columns that the memory engine fetches, and 8 more that threads do. Other chips have
attention.py.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from export.kernels.hopper import by_rows, exp2, product_layout
from export.kernels.order import after_previous


@gluon.jit
def resident_attention(
    q_tiles, kv_tiles,
    q, k, v, out, length, scale, inverse_scale, ROWS, KEYS, HEADS,
    OUT_ROW: gl.constexpr, D: gl.constexpr, MAIN: gl.constexpr, REST: gl.constexpr,
    BM: gl.constexpr, BN: gl.constexpr,
):  # fmt: skip
    """As `attention`, where ROWS and KEYS are BN, and q, k and v thirds of one matrix [batches * BN,
    3 * OUT_ROW], which comes by tiles [BM, MAIN] and [BN, MAIN] too. BM: 16 a warp."""
    WARPS: gl.constexpr = gl.num_warps()
    few: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=2 * REST, element_bitwidth=16, rank=2)
    q_main = gl.allocate_shared_memory(q_tiles.dtype, [BM, MAIN], q_tiles.layout)
    k_main = gl.allocate_shared_memory(q_tiles.dtype, [BN, MAIN], q_tiles.layout)
    v_main = gl.allocate_shared_memory(q_tiles.dtype, [BN, MAIN], q_tiles.layout)
    q_rest = gl.allocate_shared_memory(q_tiles.dtype, [BM, REST], few)
    k_rest = gl.allocate_shared_memory(q_tiles.dtype, [BN, REST], few)
    v_rest = gl.allocate_shared_memory(q_tiles.dtype, [BN, REST], few)
    full = mbarrier.allocate_mbarrier(batch=2)
    mbarrier.init(full.index(0), count=1)
    mbarrier.init(full.index(1), count=1)
    batch, head = gl.program_id(1) // HEADS, gl.program_id(1) % HEADS
    first, column = gl.program_id(0) * BM, head * D
    after_previous()
    q_found = _rest(q, batch * BN + first, column, BM, 3 * OUT_ROW, D, MAIN, REST)
    k_found = _rest(k, batch * BN, column, BN, 3 * OUT_ROW, D, MAIN, REST)
    mbarrier.expect(full.index(0), (BM + BN) * MAIN * 2)
    tma.async_load(q_tiles, [batch * BN + first, column], full.index(0), q_main)
    tma.async_load(kv_tiles, [batch * BN, OUT_ROW + column], full.index(0), k_main)
    mbarrier.expect(full.index(1), BN * MAIN * 2)
    tma.async_load(kv_tiles, [batch * BN, 2 * OUT_ROW + column], full.index(1), v_main)
    v_found = _rest(v, batch * BN, column, BN, 3 * OUT_ROW, D, MAIN, REST)
    q_rest.store(q_found)
    k_rest.store(k_found)
    fence_async_shared()
    gl.barrier()
    scored: gl.constexpr = product_layout(16 * WARPS, BN, 16, WARPS)
    scores = gl.zeros([BM, BN], gl.float32, scored)
    mbarrier.wait(full.index(0), 0)
    scores = warpgroup_mma(q_rest, k_rest.permute([1, 0]), scores, use_acc=False, is_async=True)
    scores = warpgroup_mma(q_main, k_main.permute([1, 0]), scores, is_async=True)
    v_rest.store(v_found)
    fence_async_shared()
    gl.barrier()
    scores = warpgroup_mma_wait(0, deps=(scores,))
    peak = gl.max(scores, 1) * scale
    weights = exp2(scores * scale - peak[:, None])
    share = 1 / gl.sum(weights, 1)
    if out.dtype.element_ty == gl.float8e4nv:
        share *= inverse_scale
    mixed: gl.constexpr = product_layout(16 * WARPS, MAIN, 16, WARPS)
    weights = gl.convert_layout(weights.to(q_tiles.dtype), gl.DotOperandLayout(0, mixed, 2))
    mbarrier.wait(full.index(1), 0)
    acc = gl.zeros([BM, MAIN], gl.float32, mixed)
    acc = warpgroup_mma(weights, v_main, acc, use_acc=False, is_async=True)
    tail: gl.constexpr = product_layout(16 * WARPS, REST, 16, WARPS)
    weights_too = gl.convert_layout(weights, gl.DotOperandLayout(0, tail, 2))
    rest = gl.zeros([BM, REST], gl.float32, tail)
    rest = warpgroup_mma(weights_too, v_rest, rest, use_acc=False, is_async=True)
    acc, rest = warpgroup_mma_wait(0, deps=(acc, rest))
    out += (batch * BN + first) * OUT_ROW + column
    _store(acc, share, out, 0, OUT_ROW, D)
    _store(rest, share, out, MAIN, OUT_ROW, D)


@gluon.jit
def _rest(
    x, first, column, ROWS: gl.constexpr, STRIDE: gl.constexpr, D: gl.constexpr, MAIN: gl.constexpr,
    REST: gl.constexpr,
):  # fmt: skip
    """Columns of a head from MAIN on, with zeros beyond D."""
    layout: gl.constexpr = by_rows(REST, 16, gl.num_warps())
    rows = gl.arange(0, ROWS, gl.SliceLayout(1, layout))
    columns = MAIN + gl.arange(0, REST, gl.SliceLayout(0, layout))
    places = (first + rows)[:, None] * STRIDE + (column + columns)[None, :]
    return gl.load(x + places, (columns < D)[None, :], 0.0)


@gluon.jit
def _store(acc, share, out, at: gl.constexpr, ROW: gl.constexpr, D: gl.constexpr):
    """Columns from `at` on."""
    layout: gl.constexpr = by_rows(acc.shape[1], 16, gl.num_warps())
    acc *= gl.convert_layout(share, gl.SliceLayout(1, acc.type.layout))[:, None]
    found = gl.convert_layout(acc.to(out.dtype.element_ty), layout)
    rows = gl.arange(0, acc.shape[0], gl.SliceLayout(1, layout))
    columns = at + gl.arange(0, acc.shape[1], gl.SliceLayout(0, layout))
    gl.store(out + rows[:, None] * ROW + columns[None, :], found, (columns < D)[None, :])
