"""Attention of many queries over one head of keys for SM90: two warp groups take turns at the keys, so that
one's softmax runs beside the other's products, and the memory engine fetches ahead of both.

A block has 64 queries. Each group goes through every other tile of keys with an online softmax of its own,
and in the end they merge what they found. Plain Triton cannot say so, Gluon can. Other chips have
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

from export.kernels.hopper import exp2, product_layout
from export.kernels.order import after_previous

_LOWEST: gl.constexpr = gl.constexpr(-1e30)
"""No score is lower, and it is a number."""


@gluon.jit
def pingpong(
    q_tiles, k_tiles, v_tiles, out_tiles,
    q, k, v, out, length, scale, inverse_scale, ROWS, KEYS, HEADS,
    D: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """As `attention`, of one head and batch whose rows are D long. q and out come by tiles [BM, D], keys and
    values by tiles [BN, D] too. BM: 64. Values from `length` on must be numbers, since nothing times NaN is
    NaN: the prefix holds zeros there, or what padding gave. Grid: ceil(ROWS / BM)."""
    q_buf = gl.allocate_shared_memory(q_tiles.dtype, [BM, D], q_tiles.layout)
    k_bufs = gl.allocate_shared_memory(k_tiles.dtype, [STAGES, BN, D], k_tiles.layout)
    v_bufs = gl.allocate_shared_memory(v_tiles.dtype, [STAGES, BN, D], v_tiles.layout)
    sums = gl.allocate_shared_memory(gl.float32, [4, BM], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    once = mbarrier.allocate_mbarrier(batch=3)
    full, empty = mbarrier.allocate_mbarrier(batch=4 * STAGES), mbarrier.allocate_mbarrier(batch=2 * STAGES)
    for i in gl.static_range(3):
        mbarrier.init(once.index(i), count=1)
    for i in gl.static_range(4 * STAGES):
        mbarrier.init(full.index(i), count=1)
    for i in gl.static_range(2 * STAGES):
        mbarrier.init(empty.index(i), count=1)
    keys = KEYS if length is None else gl.minimum(gl.load(length), KEYS)
    # Either group has one, though none of its keys count.
    tiles = gl.maximum(gl.cdiv(keys, BN), 2)
    buffers = (q_buf, k_bufs, v_bufs, sums, once, full, empty)
    gl.warp_specialize(
        [
            (_attend, (buffers, out_tiles, keys, tiles, scale, inverse_scale, 0)),
            (_attend, (buffers, out_tiles, keys, tiles, scale, inverse_scale, 1)),
            (_fetch, (buffers, q_tiles, k_tiles, v_tiles, tiles)),
        ],
        [4, 1],
        [240, 24],
    )


@gluon.jit
def _fetch(buffers, q_tiles, k_tiles, v_tiles, tiles):
    """The last tile of keys first, and each one's values when the next one's keys have been asked for."""
    q_buf, k_bufs, v_bufs, _, once, full, empty = buffers
    STAGES: gl.constexpr = k_bufs.shape[0]
    BN: gl.constexpr = k_bufs.shape[1]
    BYTES: gl.constexpr = BN * k_bufs.shape[2] * 2
    after_previous()
    mbarrier.expect(once.index(0), q_buf.shape[0] * q_buf.shape[1] * 2)
    tma.async_load(q_tiles, [gl.program_id(0) * q_buf.shape[0], 0], once.index(0), q_buf)
    for tile in range(tiles + 1):
        slot, phase = tile % STAGES, (tile // STAGES & 1) ^ 1
        if tile < tiles:
            mbarrier.wait(empty.index(slot), phase)
            bar = full.index(arrival(tile, STAGES)[0])
            mbarrier.expect(bar, BYTES)
            tma.async_load(k_tiles, [_place(tile, tiles) * BN, 0], bar, k_bufs.index(slot))
        before = tile - 1
        slot, phase = before % STAGES, (before // STAGES & 1) ^ 1
        if before >= 0:
            mbarrier.wait(empty.index(STAGES + slot), phase)
            bar = full.index(2 * STAGES + arrival(before, STAGES)[0])
            mbarrier.expect(bar, BYTES)
            tma.async_load(v_tiles, [_place(before, tiles) * BN, 0], bar, v_bufs.index(slot))


@gluon.jit
def arrival(turn, STAGES: gl.constexpr):
    """(barrier, phase) by which what comes at a turn is known to be there. The ring has as many barriers as
    two rounds have tiles, so that each is one group's: a barrier tells phases apart by one bit, and who has
    not waited for every one takes the end of the phase two before for that of its own."""
    return turn % (2 * STAGES), turn // (2 * STAGES) & 1


@gluon.jit
def _place(turn, tiles):
    """Of the tile that comes at a turn: what may count in part alone comes first."""
    return gl.where(turn == 0, tiles, turn) - 1


@gluon.jit
def _attend(buffers, out_tiles, keys, tiles, scale, inverse_scale, MINE: gl.constexpr):
    """One group's turns, whose weights are multiplied while the next ones are found; then its half of D."""
    q_buf, k_bufs, v_bufs, sums, once, full, empty = buffers
    STAGES: gl.constexpr = k_bufs.shape[0]
    BM: gl.constexpr = q_buf.shape[0]
    BN: gl.constexpr = k_bufs.shape[1]
    D: gl.constexpr = q_buf.shape[1]
    scored: gl.constexpr = product_layout(BM, BN, 16, 4)
    mixed: gl.constexpr = product_layout(BM, D, 16, 4)
    acc = gl.zeros([BM, D], gl.float32, mixed)
    none = gl.zeros([BM, BN], gl.float32, scored)
    mbarrier.wait(once.index(0), 0)
    mbarrier.wait(full.index(MINE), 0)
    scores = warpgroup_mma(q_buf, k_bufs.index(MINE).permute([1, 0]), none, use_acc=False, is_async=True)
    scores = warpgroup_mma_wait(0, deps=(scores,))
    mbarrier.arrive(empty.index(MINE))
    inside = gl.arange(0, BN, gl.SliceLayout(0, scored)) < keys - _place(MINE, tiles) * BN
    scores = gl.where(inside[None, :], scores, float("-inf"))
    most = gl.full([BM], _LOWEST, gl.float32, gl.SliceLayout(1, scored))
    most, shrink, total, weights = _weigh(scores, most, scale, v_bufs.dtype, mixed)
    for turn in range(MINE + 2, tiles, 2):
        slot, before = turn % STAGES, (turn - 2) % STAGES
        bar, phase = arrival(turn, STAGES)
        mbarrier.wait(full.index(bar), phase)
        scores = warpgroup_mma(q_buf, k_bufs.index(slot).permute([1, 0]), none, use_acc=False, is_async=True)
        bar, phase = arrival(turn - 2, STAGES)
        mbarrier.wait(full.index(2 * STAGES + bar), phase)
        acc = warpgroup_mma(weights, v_bufs.index(before), acc, is_async=True)
        scores = warpgroup_mma_wait(1, deps=(scores,))
        mbarrier.arrive(empty.index(slot))
        most, shrink, part, found = _weigh(scores, most, scale, v_bufs.dtype, mixed)
        total = total * shrink + part
        acc, weights = warpgroup_mma_wait(0, deps=(acc, weights))
        mbarrier.arrive(empty.index(STAGES + before))
        acc *= gl.convert_layout(shrink, gl.SliceLayout(1, mixed))[:, None]
        weights = found
    last = _last(tiles, MINE)
    bar, phase = arrival(last, STAGES)
    mbarrier.wait(full.index(2 * STAGES + bar), phase)
    acc = warpgroup_mma(weights, v_bufs.index(last % STAGES), acc, is_async=True)
    acc = warpgroup_mma_wait(0, deps=(acc,))
    # What this group has of the other's half goes where its own last keys were.
    left, right = acc.reshape([BM, 2, D // 2]).permute([0, 2, 1]).split()
    kept, given = (right, left) if MINE else (left, right)
    _wide(k_bufs.index(last % STAGES)).store(given)
    sums.index(2 * MINE).store(most)
    sums.index(2 * MINE + 1).store(total)
    gl.barrier()
    mbarrier.arrive(once.index(1 + MINE))
    mbarrier.wait(once.index(2 - MINE), 0)
    others_most = sums.index(2 - 2 * MINE).load(most.type.layout)
    others_total = sums.index(3 - 2 * MINE).load(most.type.layout)
    others_last = _last(tiles, 1 - MINE)
    others = _wide(k_bufs.index(others_last % STAGES)).load(kept.type.layout)
    peak = gl.maximum(most, others_most)
    mine, theirs = exp2(most - peak), exp2(others_most - peak)
    share = 1 / (total * mine + others_total * theirs)
    if out_tiles.dtype == gl.float8e4nv:
        share *= inverse_scale
    rows: gl.constexpr = gl.SliceLayout(1, kept.type.layout)
    mine, theirs = gl.convert_layout(mine * share, rows), gl.convert_layout(theirs * share, rows)
    result = kept * mine[:, None] + others * theirs[:, None]
    # The queries have been read by then.
    buf = q_buf.reinterpret(out_tiles.dtype, [2, BM, D // 2], out_tiles.layout).index(MINE)
    buf.store(result.to(out_tiles.dtype))
    fence_async_shared()
    gl.barrier()
    tma.async_store(out_tiles, [gl.program_id(0) * BM, MINE * (D // 2)], buf)
    tma.store_wait(0)


@gluon.jit
def _last(tiles, first):
    """Turn of a group."""
    return tiles - 1 - (tiles - 1 - first & 1)


@gluon.jit
def _wide(buf):
    """A buffer as one of half as many fp32."""
    layout: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=32, rank=2)
    return buf.reinterpret(gl.float32, [buf.shape[0], buf.shape[1] // 2], layout)


@gluon.jit
def _weigh(scores, most, scale, dtype: gl.constexpr, mixed: gl.constexpr):
    """(peaks, what becomes of sums by older ones, totals, weights) of a tile of scores."""
    peak = gl.maximum(most, gl.max(scores, 1) * scale)
    weights = exp2(scores * scale - peak[:, None])
    operand: gl.constexpr = gl.DotOperandLayout(0, mixed, 2)
    return peak, exp2(most - peak), gl.sum(weights, 1), gl.convert_layout(weights.to(dtype), operand)
