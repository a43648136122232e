"""Matrix product of many rows for SM90, as its tensor cores like it best: one block a multiprocessor takes
tile after tile, and its memory engine fetches for the next while this one is multiplied and stored.

Weights are the first operand and rows the second, of which an instruction takes any multiple of eight: a tile
has BM rows, a power of two, and MORE beside, so that 532 rows are two tiles of 272 and not five of 128. Fewer
and larger tiles read less from the L2 cache, which is what holds such a product up. One warp fetches, four or
eight multiply: plain Triton cannot say so for this chip, Gluon can. Other chips have matmul.py.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from export.kernels.hopper import by_rows, gelu, pair, product_layout
from export.kernels.order import after_previous

BUFFERED: gl.constexpr = gl.constexpr(128)
"""Rows of a tile whose result has shared memory of its own, through which it goes at once."""


@gluon.jit
def persistent(
    w_tiles, a_tiles, more_tiles,
    a, w, out, bias, keys, values, cos, sin, length, M, scale, inverse_scale,
    N: gl.constexpr, K: gl.constexpr, HEADS: gl.constexpr, D: gl.constexpr, EPILOGUE: gl.constexpr,
    SPLITS: gl.constexpr, BM: gl.constexpr, MORE: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr,
    STAGES: gl.constexpr, ADMIT: gl.constexpr,
):  # fmt: skip
    """As `matmul`. w and a come by tiles [BN, BK], [BM, BK] and [MORE, BK] too.

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
    heads = (keys, values, cos, sin)
    gl.warp_specialize(
        [
            (_multiply, (buffers, out, bias, heads, numbers, N, K, HEADS, D, SPLITS, MORE, EPILOGUE, ADMIT)),
            (_fetch, (buffers, w_tiles, a_tiles, more_tiles, used, N, K, SPLITS, MORE, ADMIT)),
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
    N: gl.constexpr, K: gl.constexpr, SPLITS: gl.constexpr, MORE: gl.constexpr, ADMIT: gl.constexpr,
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
    after_previous(ADMIT)
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
    buffers, out, bias, heads, numbers,
    N: gl.constexpr, K: gl.constexpr, HEADS: gl.constexpr, D: gl.constexpr, SPLITS: gl.constexpr,
    MORE: gl.constexpr, EPILOGUE: gl.constexpr, ADMIT: gl.constexpr,
):  # fmt: skip
    """Empties it. Tiles of no token's rows come last, and are zeros."""
    w_bufs, a_bufs, more_bufs, full, empty = buffers
    down, used, M, scale, inverse_scale = numbers
    STAGES: gl.constexpr = w_bufs.shape[0]
    BN: gl.constexpr = w_bufs.shape[1]
    BK: gl.constexpr = w_bufs.shape[2]
    BM: gl.constexpr = a_bufs.shape[1]
    BITS: gl.constexpr = w_bufs.dtype.primitive_bitwidth
    ACROSS: gl.constexpr = SPLITS * (N // BN)
    n = 0
    for tile in range(gl.program_id(0), ACROSS * down, gl.num_programs(0)):
        acc = gl.zeros([BN, BM], gl.float32, product_layout(BN, BM, BITS, gl.num_warps()))
        if MORE:
            more = gl.zeros([BN, MORE], gl.float32, product_layout(BN, MORE, BITS, gl.num_warps()))
        has_tokens = tile < ACROSS * used
        if has_tokens:
            row, column, split = _place(tile, used, N, BN)
        else:
            row, column, split = _place(tile - ACROSS * used, down - used, N, BN)
            row += used
        rows = row * (BM + MORE)
        # What the end of the tile needs comes while the products are computed.
        if EPILOGUE == "rope":
            turn = _rotation(acc, heads, rows, column * BN, M, HEADS, D)
            if MORE:
                turn_more = _rotation(more, heads, rows + BM, column * BN, M, HEADS, D)
        else:
            shift = _shift(acc, bias, column * BN)
            if MORE:
                shift_more = _shift(more, bias, column * BN)
        if has_tokens:
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
            after_previous(ADMIT)
        if EPILOGUE == "rope":
            _spread(acc, turn, out, heads, rows, column * BN, M, scale, HEADS, D)
            if MORE:
                _spread(more, turn_more, out, heads, rows + BM, column * BN, M, scale, HEADS, D)
        else:
            part = out + split * M * N if EPILOGUE == "parts" else out
            _store(acc, part, shift, rows, column * BN, M, scale, inverse_scale, N, EPILOGUE)
            if MORE:
                _store(more, part, shift_more, rows + BM, column * BN, M, scale, inverse_scale, N, EPILOGUE)


@gluon.jit
def _rotation(acc, heads, first_row, first, M, HEADS: gl.constexpr, D: gl.constexpr):
    """As epilogue.load_rotation, as the tile `acc` will need it."""
    _, _, cos, sin = heads
    half, _ = pair(acc)
    rows = first_row + gl.arange(0, half.shape[1], gl.SliceLayout(0, half.type.layout))
    pairs = first % D // 2 + gl.arange(0, half.shape[0], gl.SliceLayout(1, half.type.layout))
    angles = rows[None, :] * (D // 2) + pairs[:, None]
    turned = (rows < gl.where(first < (HEADS + 1) * D, M, 0))[None, :]
    return gl.load(cos + angles, turned, 1.0), gl.load(sin + angles, turned, 0.0)


@gluon.jit
def _shift(acc, bias, first):
    """Of the tile's columns from `first` on, which are its first dimension; None without a bias."""
    if bias is not None:
        cols = first + gl.arange(0, acc.shape[0], gl.SliceLayout(1, acc.type.layout))
        return gl.load(bias + cols).to(gl.float32)
    else:
        return None


@gluon.jit
def _spread(
    acc, turn, out, heads, first_row, first, M, scale, HEADS: gl.constexpr, D: gl.constexpr
):  # fmt: skip
    """As epilogue.store_rope."""
    keys, values, _, _ = heads
    a, b = pair(acc * scale)
    c, s = turn
    head = first // D
    if head < HEADS:
        places = out + head * D
        width = HEADS * D
    else:
        places = keys if head == HEADS else values
        width = D
    places += first % D // 2
    _write(a * c - b * s, places, first_row, M, width)
    _write(b * c + a * s, places + D // 2, first_row, M, width)


@gluon.jit
def _write(acc, out, first_row, M, width):
    """A tile, whose first dimension are columns, to `out` [M, width] from `first_row` on."""
    x = _turned(acc.to(out.dtype.element_ty), acc.shape[1])
    rows = first_row + gl.arange(0, x.shape[0], gl.SliceLayout(1, x.type.layout))
    cols = gl.arange(0, x.shape[1], gl.SliceLayout(0, x.type.layout))
    gl.store(out + rows[:, None] * width + cols[None, :], x, (rows < M)[:, None])


@gluon.jit
def _turned(x, rows: gl.constexpr):
    """The transpose of 16-bit columns, eight of them a thread. rows: of the tile that x is."""
    columns: gl.constexpr = x.shape[0]
    back: gl.constexpr = by_rows(columns, 16, gl.num_warps())
    if rows > BUFFERED:
        return gl.convert_layout(x.permute([1, 0]), back)
    else:
        # With two barriers, where a conversion has two for every few numbers.
        held: gl.constexpr = gl.SwizzledSharedLayout(8, 1, min(8, columns // 8), [1, 0])
        buffer = gl.allocate_shared_memory(x.dtype, [x.shape[1], columns], held)
        buffer.store(x.permute([1, 0]))
        return buffer.load(back)


@gluon.jit
def _store(
    acc, out, shift, first_row, first, M, scale, inverse_scale, N: gl.constexpr, EPILOGUE: gl.constexpr
):  # fmt: skip
    """The columns of a tile from `first` on, which are its first dimension."""
    acc *= scale
    if shift is not None:
        acc += shift[:, None]
    if EPILOGUE == "geglu":
        gate, up = pair(acc)
        acc = gelu(gate, out) * up
        first //= 2
    elif EPILOGUE == "gelu":
        acc = gelu(acc, out)
    width: gl.constexpr = N // 2 if EPILOGUE == "geglu" else N
    if out.dtype.element_ty == gl.float8e4nv:
        # Two rows' codes come out of one conversion, and are turned together.
        acc *= inverse_scale
        upper, lower = acc.reshape([acc.shape[0], acc.shape[1] // 2, 2]).split()
        codes = _turned(_codes(upper, lower), acc.shape[1])
        rows = first_row + 2 * gl.arange(0, codes.shape[0], gl.SliceLayout(1, codes.type.layout))
        cols = first + gl.arange(0, codes.shape[1], gl.SliceLayout(0, codes.type.layout))
        places = out + rows[:, None] * width + cols[None, :]
        gl.store(places, _code(codes), (rows < M)[:, None])
        gl.store(places + width, _code(codes >> 8), (rows + 1 < M)[:, None])
    else:
        _write(acc, out + first, first_row, M, width)


@gluon.jit
def _codes(low, high):
    """FP8 codes of two fp32, saturated, in the halves of an int16."""
    return gl.inline_asm_elementwise(
        "cvt.rn.satfinite.e4m3x2.f32 $0, $2, $1;", "=h,f,f", [low, high], gl.int16, is_pure=True, pack=1
    )


@gluon.jit
def _code(codes):
    return (codes & 0xFF).to(gl.uint8).to(gl.float8e4nv, bitcast=True)
