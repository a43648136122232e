"""Matrix product of many rows for SM90, as its tensor cores like it best: one block a multiprocessor takes
tile after tile, and its memory engine fetches for the next while this one is multiplied and stored.

Weights are the first operand and rows the second, of which an instruction takes any multiple of eight: a tile
has BM rows, a power of two, and MORE beside, so that 532 rows are two tiles of 272 and not five of 128. Fewer
and larger tiles read less from the L2 cache, which is what holds such a product up. One warp fetches, eight
multiply: plain Triton cannot say so for this chip, Gluon can. Other chips have matmul.py.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from export.kernels.epilogue import PAIRED
from export.kernels.order import after_previous
from pi05_runtime.plan import TILE_WIDTH


def tile_type(dtype: str, rows: int, itemsize: int) -> str:
    """Of an argument that comes by tiles, as Triton writes it. dtype: of its elements, likewise."""
    layout = gl.NVMMASharedLayout(swizzle_byte_width=TILE_WIDTH, element_bitwidth=8 * itemsize, rank=2)
    return f"tensordesc<{dtype}[{rows},{TILE_WIDTH // itemsize}],{layout!r}>"


@gluon.jit
def persistent(
    w_tiles, a_tiles, more_tiles,
    a, w, out, bias, keys, values, cos, sin, length, M, scale, inverse_scale,
    N: gl.constexpr, K: gl.constexpr, HEADS: gl.constexpr, D: gl.constexpr, EPILOGUE: gl.constexpr,
    SPLITS: gl.constexpr, BM: gl.constexpr, MORE: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    """As `matmul`, for all epilogues but rope. w and a come by tiles [BN, BK], [BM, BK] and [MORE, BK] too.

    MORE: 0 or a multiple of 16. BN divides N, and BK, of 128 bytes, divides K. Grid: any number of programs;
    they take the tiles in turn.
    """
    w_bufs = gl.allocate_shared_memory(w_tiles.dtype, [STAGES, BN, BK], w_tiles.layout)
    a_bufs = gl.allocate_shared_memory(a_tiles.dtype, [STAGES, BM, BK], a_tiles.layout)
    if MORE:
        more_bufs = gl.allocate_shared_memory(a_tiles.dtype, [STAGES, MORE, BK], more_tiles.layout)
    else:
        more_bufs = a_bufs
    full, empty = mbarrier.allocate_mbarrier(batch=STAGES), mbarrier.allocate_mbarrier(batch=STAGES)
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=1)
    # Rows of tiles, and how many of them belong to a token.
    down = gl.cdiv(M, BM + MORE)
    used = down if length is None else gl.cdiv(gl.minimum(gl.load(length), M), BM + MORE)
    buffers = (w_bufs, a_bufs, more_bufs, full, empty)
    numbers = (down, used, M, scale, inverse_scale)
    gl.warp_specialize(
        [
            (_multiply, (buffers, out, bias, numbers, N, K, SPLITS, MORE, EPILOGUE)),
            (_fetch, (buffers, w_tiles, a_tiles, more_tiles, used, N, K, SPLITS, MORE)),
        ],
        [1],
        [24],
    )


@gluon.jit
def _place(tile, down, N: gl.constexpr, BN: gl.constexpr):
    """(row of tiles, column, split): those that share weights come one after another."""
    return tile % down, tile // down % (N // BN), tile // down // (N // BN)


@gluon.jit
def _steps(split, K: gl.constexpr, BK: gl.constexpr, SPLITS: gl.constexpr):
    """(the first of a split, the one after its last)."""
    share: gl.constexpr = (K // BK + SPLITS - 1) // SPLITS
    return split * share, gl.minimum(split * share + share, K // BK)


@gluon.jit
def _fetch(
    buffers, w_tiles, a_tiles, more_tiles, used,
    N: gl.constexpr, K: gl.constexpr, SPLITS: gl.constexpr, MORE: gl.constexpr,
):  # fmt: skip
    """Fills the ring of buffers, with all tiles' steps one after another; those that are empty from the start
    with weights, before it waits for the previous launch."""
    w_bufs, a_bufs, more_bufs, full, empty = buffers
    STAGES: gl.constexpr = w_bufs.shape[0]
    BN: gl.constexpr = w_bufs.shape[1]
    BK: gl.constexpr = w_bufs.shape[2]
    BM: gl.constexpr = a_bufs.shape[1]
    BYTES: gl.constexpr = (BN + BM + MORE) * BK * w_bufs.dtype.primitive_bitwidth // 8
    TILES: gl.constexpr = SPLITS * (N // BN)
    mine = gl.program_id(0)
    row, column, split = _place(mine, gl.maximum(used, 1), N, BN)
    first, end = _steps(split, K, BK, SPLITS)
    ahead = gl.minimum(STAGES, end - first) if mine < TILES * used else 0
    for step in range(ahead):
        mbarrier.expect(full.index(step), BYTES)
        tma.async_load(w_tiles, [column * BN, (first + step) * BK], full.index(step), w_bufs.index(step))
    after_previous()
    n = 0
    for tile in range(mine, TILES * used, gl.num_programs(0)):
        row, column, split = _place(tile, used, N, BN)
        first, end = _steps(split, K, BK, SPLITS)
        for step in range(first, end):
            slot, later = n % STAGES, n >= ahead
            bar = full.index(slot)
            mbarrier.wait(empty.index(slot), (n // STAGES & 1) ^ 1, pred=later)
            mbarrier.expect(bar, BYTES, pred=later)
            tma.async_load(w_tiles, [column * BN, step * BK], bar, w_bufs.index(slot), pred=later)
            tma.async_load(a_tiles, [row * (BM + MORE), step * BK], bar, a_bufs.index(slot))
            if MORE:
                tma.async_load(more_tiles, [row * (BM + MORE) + BM, step * BK], bar, more_bufs.index(slot))
            n += 1


@gluon.jit
def _multiply(
    buffers, out, bias, numbers,
    N: gl.constexpr, K: gl.constexpr, SPLITS: gl.constexpr, MORE: gl.constexpr, EPILOGUE: gl.constexpr,
):  # fmt: skip
    """Empties it. Tiles of no token's rows come last, and are zeros."""
    w_bufs, a_bufs, more_bufs, full, empty = buffers
    down, used, M, scale, inverse_scale = numbers
    STAGES: gl.constexpr = w_bufs.shape[0]
    BN: gl.constexpr = w_bufs.shape[1]
    BK: gl.constexpr = w_bufs.shape[2]
    BM: gl.constexpr = a_bufs.shape[1]
    ACROSS: gl.constexpr = SPLITS * (N // BN)
    n = 0
    for tile in range(gl.program_id(0), ACROSS * down, gl.num_programs(0)):
        acc = gl.zeros([BN, BM], gl.float32, _product(BM, BK, gl.num_warps()))
        if MORE:
            more = gl.zeros([BN, MORE], gl.float32, _product(MORE, BK, gl.num_warps()))
        if tile < ACROSS * used:
            row, column, split = _place(tile, used, N, BN)
            first, end = _steps(split, K, BK, SPLITS)
            for step in range(first, end):
                slot = n % STAGES
                mbarrier.wait(full.index(slot), n // STAGES & 1)
                weights = w_bufs.index(slot)
                acc = warpgroup_mma(weights, a_bufs.index(slot).permute([1, 0]), acc, is_async=True)
                if MORE:
                    more = warpgroup_mma(weights, more_bufs.index(slot).permute([1, 0]), more, is_async=True)
                    acc, more = warpgroup_mma_wait(2, deps=(acc, more))
                else:
                    acc = warpgroup_mma_wait(1, deps=(acc,))
                # What the step before this one read has been multiplied by now.
                mbarrier.arrive(empty.index((n + STAGES - 1) % STAGES), pred=step > first)
                n += 1
            if MORE:
                acc, more = warpgroup_mma_wait(0, deps=(acc, more))
            else:
                acc = warpgroup_mma_wait(0, deps=(acc,))
            mbarrier.arrive(empty.index((n + STAGES - 1) % STAGES))
        else:
            # A program that had no other tile has seen nothing yet that came after the previous launch.
            after_previous()
            row, column, split = _place(tile - ACROSS * used, down - used, N, BN)
            row += used
        part = out + split * M * N if EPILOGUE == "parts" else out
        rows = row * (BM + MORE)
        _store(acc, part, bias, rows, column * BN, M, scale, inverse_scale, N, EPILOGUE)
        if MORE:
            _store(more, part, bias, rows + BM, column * BN, M, scale, inverse_scale, N, EPILOGUE)


@gluon.jit
def _store(
    acc, out, bias, first_row, first, M, scale, inverse_scale, N: gl.constexpr, EPILOGUE: gl.constexpr
):  # fmt: skip
    """The columns of a tile from `first` on, which are its first dimension."""
    acc *= scale
    if bias is not None:
        places = first + gl.arange(0, acc.shape[0], gl.SliceLayout(1, acc.type.layout))
        acc += gl.load(bias + places).to(gl.float32)[:, None]
    if EPILOGUE == "geglu":
        half: gl.constexpr = acc.shape[0] // 2
        pairs = acc.reshape([half // PAIRED, 2, PAIRED, acc.shape[1]]).permute([0, 2, 3, 1])
        gate, up = pairs.split()
        acc = (_gelu(gate) * up).reshape([half, acc.shape[1]])
        first //= 2
    elif EPILOGUE == "gelu":
        acc = _gelu(acc)
    width: gl.constexpr = N // 2 if EPILOGUE == "geglu" else N
    columns: gl.constexpr = acc.shape[0]
    back: gl.constexpr = _by_rows(columns, gl.num_warps())
    cols = first + gl.arange(0, columns, gl.SliceLayout(0, back))
    if out.dtype.element_ty == gl.float8e4nv:
        # Two rows' codes come out of one conversion, and go through shared memory together.
        acc *= inverse_scale
        upper, lower = acc.reshape([columns, acc.shape[1] // 2, 2]).split()
        codes = gl.convert_layout(_codes(upper, lower).permute([1, 0]), back)
        rows = first_row + 2 * gl.arange(0, acc.shape[1] // 2, gl.SliceLayout(1, back))
        places = out + rows[:, None] * width + cols[None, :]
        gl.store(places, _code(codes), (rows < M)[:, None])
        gl.store(places + width, _code(codes >> 8), (rows + 1 < M)[:, None])
    else:
        turned = gl.convert_layout(acc.to(out.dtype.element_ty).permute([1, 0]), back)
        rows = first_row + gl.arange(0, acc.shape[1], gl.SliceLayout(1, back))
        gl.store(out + rows[:, None] * width + cols[None, :], turned, (rows < M)[:, None])


@gluon.jit
def _gelu(x):
    """As epilogue.gelu, in half the instructions: the logistic function takes the chip's own 2^x and 1/x."""
    power = x * (-2.302208198 - 0.1029432396 * x * x)
    share = gl.inline_asm_elementwise(
        "{ .reg .f32 e; ex2.approx.ftz.f32 e, $1; add.f32 e, e, 0f3F800000; rcp.approx.ftz.f32 $0, e; }",
        "=f,f", [power], gl.float32, is_pure=True, pack=1,
    )  # fmt: skip
    return x * share


@gluon.jit
def _codes(low, high):
    """FP8 codes of two fp32, saturated, in the halves of an int16."""
    return gl.inline_asm_elementwise(
        "cvt.rn.satfinite.e4m3x2.f32 $0, $2, $1;", "=h,f,f", [low, high], gl.int16, is_pure=True, pack=1
    )


@gluon.jit
def _code(codes):
    return (codes & 0xFF).to(gl.uint8).to(gl.float8e4nv, bitcast=True)


@gluon.constexpr_function
def _product(rows, depth, warps):
    """How the instructions leave a product: each takes 64 weights, `rows` and a quarter of `depth`."""
    shape = [16, rows, depth // 4]
    return gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[warps, 1], instr_shape=shape)


@gluon.constexpr_function
def _by_rows(columns, warps):
    """Eight columns a thread."""
    lanes = min(32, columns // 8)
    return gl.BlockedLayout([1, 8], [32 // lanes, lanes], [warps, 1], [1, 0])
