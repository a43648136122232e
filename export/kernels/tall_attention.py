"""Attention of one action chunk for SM90, whose tensor cores take 64 rows of one operand at least: keys, then
the dims of values. A program's tile of the cache waits in shared memory for the queries, so that two short
products are all that is left between the launches before and after. Other chips have decode_attention.py.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, warpgroup_mma

from export.kernels.hopper import by_rows, product_layout
from export.kernels.order import AT_ONCE, LINE, admit_next, after_previous


@gluon.jit
def tall_attention(
    q, keys, values, own_keys, own_values, length, parts, peaks, totals, soon, M, scale,
    HEADS: gl.constexpr, D: gl.constexpr, SPLITS: gl.constexpr, CACHED: gl.constexpr,
    BM: gl.constexpr, KEYS: gl.constexpr, SOON: gl.constexpr, ADMIT: gl.constexpr,
):  # fmt: skip
    """As `decode_attention`, in tiles of KEYS, 64."""
    warps: gl.constexpr = gl.num_warps()
    swizzled: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    k_buf = gl.allocate_shared_memory(gl.bfloat16, [KEYS, D], swizzled)
    v_buf = gl.allocate_shared_memory(gl.bfloat16, [KEYS, D], swizzled)
    q_buf = gl.allocate_shared_memory(gl.bfloat16, [BM, D], swizzled)
    weight_buf = gl.allocate_shared_memory(gl.bfloat16, [BM, KEYS], swizzled)
    head, split = gl.program_id(0), gl.program_id(1)
    across: gl.constexpr = by_rows(D, 16, warps)
    dims = gl.arange(0, D, gl.SliceLayout(0, across))[None, :]
    tile = gl.arange(0, KEYS, gl.SliceLayout(1, across))[:, None]
    if split < CACHED:
        # Another network wrote the cache (order.py).
        if ADMIT == AT_ONCE:
            admit_next()
        first, end = split * KEYS, gl.load(length)
        _fetch(k_buf, v_buf, keys, values, first + tile, end, dims, D)
        if SOON:
            _ask_for(soon, SOON, split * HEADS + head, CACHED * HEADS)
        after_previous(ADMIT)
    else:
        first, end = (split - CACHED) * KEYS, M
        after_previous(ADMIT)
        _fetch(k_buf, v_buf, own_keys, own_values, first + tile, end, dims, D)
    lines = gl.arange(0, BM, gl.SliceLayout(1, across))[:, None]
    q_buf.store(gl.load(q + lines * (HEADS * D) + head * D + dims, lines < M, 0.0))
    async_copy.wait_group(0)
    fence_async_shared()
    acc = gl.zeros([KEYS, BM], gl.float32, product_layout(KEYS, BM, 16, warps))
    scores = warpgroup_mma(k_buf, q_buf.permute([1, 0]), acc) * scale
    layout: gl.constexpr = scores.type.layout
    here = first + gl.arange(0, KEYS, gl.SliceLayout(1, layout))[:, None]
    scores = gl.where(here < end, scores, float("-inf"))
    # A tile without a key has no peak; its part then weighs nothing.
    peak = gl.maximum(gl.max(scores, 0), -1e30)
    weights = gl.exp2(scores - peak[None, :])
    weight_buf.store(weights.to(gl.bfloat16).permute([1, 0]))
    fence_async_shared()
    mine = (head * SPLITS + split) * M
    rows = gl.arange(0, BM, gl.SliceLayout(0, layout))
    gl.store(peaks + mine + rows, peak, rows < M)
    gl.store(totals + mine + rows, gl.sum(weights, 0), rows < M)
    acc = gl.zeros([D, BM], gl.float32, product_layout(D, BM, 16, warps))
    found = warpgroup_mma(v_buf.permute([1, 0]), weight_buf.permute([1, 0]), acc)
    held: gl.constexpr = found.type.layout
    rows = gl.arange(0, BM, gl.SliceLayout(0, held))[None, :]
    places = parts + (mine + rows) * D + gl.arange(0, D, gl.SliceLayout(1, held))[:, None]
    gl.store(places, found.to(parts.dtype.element_ty), rows < M)


@gluon.jit
def _fetch(k_buf, v_buf, keys, values, here, end, dims, D: gl.constexpr):
    """Begins to copy a tile of keys and values, zeros from `end` on."""
    async_copy.async_load(k_buf, keys + here * D + dims, here < end)
    async_copy.async_load(v_buf, values + here * D + dims, here < end)
    async_copy.commit_group()


@gluon.jit
def _ask_for(weights, BYTES: gl.constexpr, mine, PROGRAMS: gl.constexpr):
    """As order.ask_for, a line a thread."""
    threads: gl.constexpr = 32 * gl.num_warps()
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    size: gl.constexpr = weights.dtype.element_ty.primitive_bitwidth // 8
    lines = gl.arange(0, threads, layout)
    for piece in range(mine, BYTES // (LINE * threads), PROGRAMS):
        gl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l",
            [weights + (piece * threads + lines) * (LINE // size)], gl.int32, is_pure=False, pack=1,
        )  # fmt: skip
