"""What SM90's kernels in Gluon share: how its warp groups hold a product, and its own functions."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from export.kernels.epilogue import PAIRED
from pi05_runtime.plan import TILE_WIDTH


def tile_type(dtype: str, rows: int, columns: int, itemsize: int) -> str:
    """Of an argument that comes by tiles, as Triton writes it. dtype: of its elements, likewise. columns: as
    many as TILE_WIDTH has, or a multiple, which the memory engine fetches one after another."""
    layout = gl.NVMMASharedLayout(swizzle_byte_width=TILE_WIDTH, element_bitwidth=8 * itemsize, rank=2)
    return f"tensordesc<{dtype}[{rows},{columns}],{layout!r}>"


@gluon.constexpr_function
def product_layout(rows, columns, bits, warps):
    """How the instructions leave a product of operands of `bits`: each takes 64 rows of the first, and
    `columns` of the second, which warps share where there are not rows enough for all."""
    down = min(warps, rows // 16)
    shape = [16, columns * down // warps, 256 // bits]
    return gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[down, warps // down], instr_shape=shape)


@gluon.constexpr_function
def by_rows(columns, bits, warps):
    """Sixteen bytes a thread."""
    each = 128 // bits
    lanes = min(32, columns // each)
    return gl.BlockedLayout([1, each], [32 // lanes, lanes], [warps, 1], [1, 0])


@gluon.jit
def pair(acc):
    """What belongs together of columns, the first dimension, that come PAIRED and PAIRED."""
    half: gl.constexpr = acc.shape[0] // 2
    a, b = acc.reshape([half // PAIRED, 2, PAIRED, acc.shape[1]]).permute([0, 2, 3, 1]).split()
    return a.reshape([half, acc.shape[1]]), b.reshape([half, acc.shape[1]])


@gluon.jit
def gelu(x, out):
    """As epilogue.gelu, of the chip's own functions: FP8 codes need no more than its tanh, right to 11 bits;
    the logistic function takes two, 2^x and 1/x."""
    if out.dtype.element_ty == gl.float8e4nv:
        half = 0.5 * x
        tanh = gl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [x * (0.7978845608 + 0.0356774081 * x * x)], gl.float32,
            is_pure=True, pack=1,
        )  # fmt: skip
        result = half + half * tanh
    else:
        result = x * gl.inline_asm_elementwise(
            "{ .reg .f32 e; ex2.approx.ftz.f32 e, $1; add.f32 e, e, 0f3F800000; rcp.approx.ftz.f32 $0, e; }",
            "=f,f", [x * (-2.302208198 - 0.1029432396 * x * x)], gl.float32, is_pure=True, pack=1,
        )  # fmt: skip
    return result


@gluon.jit
def exp2(x):
    return gl.inline_asm_elementwise(
        "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], gl.float32, is_pure=True, pack=1
    )
