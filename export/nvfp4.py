"""NVFP4: four-bit numbers in blocks of 16 inputs, for TensorRT and, number for number, for a CPU.

A number is an E2M1 code (0, 0.5, 1, 1.5, 2, 3, 4, 6 and a sign), times the FP8 scale of its block, times
one scale of the whole tensor. Weights are stored so; activations are rounded so at run time, block by
block, under a tensor scale that calibration fixed.

The tensor scale is rounded up to a power of two. Then block scale x tensor scale has FP8's four
significant bits and code x both has six, which bf16's eight hold: nothing is rounded on the way back, so
the bf16 graph that TensorRT parses and the fp32 twin that ONNX Runtime runs mean the very same numbers.
It costs at most one of the block scales' seventeen binades, at the small end.

ONNX has no operator for this rounding and ONNX Runtime no FP4, so a quantized graph says it in two
operators of our own. `expand_for_tensorrt` replaces them by TensorRT's; in the CPU's twin they are
functions of ordinary operators, local to the model, over the same bytes.
"""

import math
from itertools import pairwise

import onnx
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper
from torch import Tensor

BLOCK = 16
"""Inputs that share one FP8 scale."""
GRID = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""What the codes 0 to 7 stand for; 8 to 15 are the same, negative."""
ROWS = 1024
"""Rows of a weight that are encoded at a time, so that no second copy of it in fp32 is ever held."""
LARGEST = 6.0 * 448.0
"""The largest E2M1 number times the largest FP8 scale: what a tensor scale of 1 reaches."""

DOMAIN, ROUND, RESTORE = "pi05", "RoundNVFP4", "DequantizeNVFP4"
TENSORRT_DOMAIN, TENSORRT_OPSET, TENSORRT_IR = "trt", 23, 11
"""FLOAT4E2M1 is a type of DequantizeLinear from opset 23 on, and of ONNX from IR version 11 on."""


def tensor_scale(amax: float) -> float:
    """The smallest power of two under which a tensor whose largest magnitude is `amax` > 0 fits."""
    mantissa, exponent = math.frexp(amax / LARGEST)
    return math.ldexp(1.0, exponent - 1 if mantissa == 0.5 else exponent)


def e2m1_codes(values: Tensor) -> Tensor:
    """The uint8 code of the number nearest to each value, a tie going to the even code; beyond 6 is 6."""
    magnitude = values.abs()
    codes = (values < 0).to(torch.uint8) * 8
    for code, (below, above) in enumerate(pairwise(GRID)):
        middle = (below + above) / 2
        codes += magnitude >= middle if code % 2 else magnitude > middle
    return codes


def encode(weight: Tensor, scale: float) -> tuple[bytes, bytes]:
    """(codes of [in, out], two a byte and the low half first; FP8 scales of [in / 16, out]) of a weight
    [out, in]. scale: the weight's tensor scale."""
    parts = [_encode_rows(rows.float(), scale) for rows in weight.split(ROWS)]
    codes, scales = (torch.cat(tensors).t().contiguous() for tensors in zip(*parts, strict=True))
    pairs = codes.view(-1, 2)
    packed = pairs[:, 0] | (pairs[:, 1] << 4)
    return packed.numpy().tobytes(), scales.numpy().tobytes()


def _encode_rows(weight: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """(codes [rows, in], scales as bytes [rows, in / 16]), both uint8."""
    blocks = weight.unflatten(-1, (-1, BLOCK))
    scales = (blocks.abs().amax(-1) / GRID[-1] / scale).clamp(max=448).to(torch.float8_e4m3fn)
    step = scales.float() * scale
    # A block of zeros, or so small that its scale is: any code stands for zero, and this gives code 0.
    step[step == 0] = torch.inf
    codes = e2m1_codes(blocks / step.unsqueeze(-1)).flatten(-2)
    return codes, scales.view(torch.uint8)


def expand_for_tensorrt(model: ModelProto) -> ModelProto:
    """The same model with our two operators written as TensorRT's: TRT_FP4DynamicQuantize, and a
    DequantizeLinear of the scales in front of one of the codes. A model without them is returned as it is.
    """
    if not _uses(model, DOMAIN):
        return model
    expanded = ModelProto()
    expanded.CopyFrom(model)
    del expanded.graph.node[:], expanded.opset_import[:]
    for node in model.graph.node:
        expand = {ROUND: _round_nodes, RESTORE: _restore_nodes}.get(node.op_type)
        expanded.graph.node.extend(expand(node) if expand else [node])
    expanded.opset_import.extend(
        [helper.make_opsetid("", TENSORRT_OPSET), helper.make_opsetid(TENSORRT_DOMAIN, 1)]
    )
    expanded.ir_version = max(model.ir_version, TENSORRT_IR)
    return expanded


def define_for_cpu(model: ModelProto) -> None:
    """Adds the functions that our two operators stand for to an fp32 `model`, whose FP4 codes become the
    same bytes as UINT8."""
    if not _uses(model, DOMAIN):
        return
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT4E2M1:
            packed = math.prod(tensor.dims) // 2
            tensor.data_type = TensorProto.UINT8
            tensor.dims[:] = [packed]
    model.functions.extend(FUNCTIONS)
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))


def _round_nodes(node: NodeProto) -> list[NodeProto]:
    x, scale = node.input
    codes, scales = f"{node.output[0]}.codes", f"{node.output[0]}.block_scales"
    quantize = helper.make_node(
        "TRT_FP4DynamicQuantize",
        [x, scale],
        [codes, scales],
        f"{node.output[0]}.TRT_FP4DynamicQuantize",
        domain=TENSORRT_DOMAIN,
        axis=-1,
        block_size=BLOCK,
        scale_type=TensorProto.FLOAT8E4M3FN,
    )
    return [quantize, *_two_levels(node, codes, scales, scale, axis=-1)]


def _restore_nodes(node: NodeProto) -> list[NodeProto]:
    codes, scales, scale = node.input
    return _two_levels(node, codes, scales, scale, axis=0)


def _two_levels(node: NodeProto, codes: str, scales: str, scale: str, axis: int) -> list[NodeProto]:
    restored = node.output[0]
    step = f"{restored}.step"
    return [
        helper.make_node("DequantizeLinear", [scales, scale], [step], f"{step}.DequantizeLinear"),
        helper.make_node(
            "DequantizeLinear",
            [codes, step],
            [restored],
            f"{restored}.DequantizeLinear",
            axis=axis,
            block_size=BLOCK,
        ),
    ]


def _uses(model: ModelProto, domain: str) -> bool:
    return any(node.domain == domain for node in model.graph.node)


_NUMBERS = (*GRID, *(-x for x in GRID))
_PAIRS = ", ".join(f"{_NUMBERS[byte & 15]}, {_NUMBERS[byte >> 4]}" for byte in range(256))
FUNCTIONS = (
    onnx.parser.parse_function(f"""
    <domain: "{DOMAIN}", opset_import: ["" : 22]>
    {RESTORE} (codes, block_scales, scale) => (weight) {{
        inner = Constant <value_ints = [1]> ()
        last = Constant <value_ints = [-1]> ()
        size = Constant <value_ints = [{BLOCK}]> ()
        pairs = Constant <value = float[256, 2] {{{_PAIRS}}}> ()
        index = Cast <to = 6> (codes)
        numbers = Gather (pairs, index)
        rows = Shape <start = 0, end = 1> (block_scales)
        out = Shape <start = 1, end = 2> (block_scales)
        blocked = Concat <axis = 0> (rows, size, out)
        flat = Concat <axis = 0> (last, out)
        in_blocks = Reshape (numbers, blocked)
        wide_scales = Cast <to = 1> (block_scales)
        steps = Mul (wide_scales, scale)
        step = Unsqueeze (steps, inner)
        restored = Mul (in_blocks, step)
        weight = Reshape (restored, flat)
    }}"""),
    onnx.parser.parse_function(f"""
    <domain: "{DOMAIN}", opset_import: ["" : 22]>
    {ROUND} (x, scale) => (y) {{
        blocked = Constant <value_ints = [-1, {BLOCK}]> ()
        last = Constant <value_ints = [-1]> ()
        zero = Constant <value_float = 0.0> ()
        half = Constant <value_float = 0.5> ()
        one = Constant <value_float = 1.0> ()
        two = Constant <value_float = 2.0> ()
        four = Constant <value_float = 4.0> ()
        six = Constant <value_float = 6.0> ()
        minus_six = Constant <value_float = -6.0> ()
        blocks = Reshape (x, blocked)
        magnitudes = Abs (blocks)
        largest = ReduceMax (magnitudes, last)
        share = Div (largest, six)
        wanted = Div (share, scale)
        block_scale = Cast <to = 17, saturate = 1> (wanted)
        wide_scale = Cast <to = 1> (block_scale)
        step = Mul (wide_scale, scale)
        alive = Greater (step, zero)
        divisor = Where (alive, step, one)
        ratio = Div (blocks, divisor)
        inside = Clip (ratio, minus_six, six)
        number = Where (alive, inside, zero)
        magnitude = Abs (number)
        below_four = Less (magnitude, four)
        below_two = Less (magnitude, two)
        coarse = Where (below_four, one, two)
        spacing = Where (below_two, half, coarse)
        count = Div (number, spacing)
        whole = Round (count)
        nearest = Mul (whole, spacing)
        restored = Mul (nearest, step)
        shape = Shape (x)
        y = Reshape (restored, shape)
    }}"""),
)
"""The two operators in ordinary ones, fp32. codes: uint8 [in * out / 2]; block_scales FP8 [in / 16, out];
scale: fp32 scalar. Round halves to even, which on this grid is the even code."""
