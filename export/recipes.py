"""Recipes: how a linear layer's weights and activations become codes and scales.

ModelOpt calibrates and its quantizers hold the ranges; this file says which quantizers a recipe
turns on, and rounds ranges to the bf16 scales and codes that both ONNX twins and every engine share.
TensorRT wants a scale in the dtype of the activations, so a scale is a bf16 number everywhere.
A layer's format follows from the recipe and the layer: nvfp4 holds the MLPs, which are most of the weights,
and leaves the layers around attention to fp8.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import modelopt.torch.quantization as mtq
import onnx
import torch
from torch import Tensor, nn

from export import nvfp4
from export.params import Recipe
from pi05_runtime.errors import EngineError, ParamsError

INT4_BLOCK = 128
"""Inputs that share one int4 scale."""
MLP = ("gate_up", "down", "fc1", "fc2")
"""Last names of the layers that recipe nvfp4 holds in nvfp4."""


@dataclass(frozen=True)
class Format:
    """Number format of a layer. weight and activation: ModelOpt quantizer settings; activation None
    leaves activations alone. largest: the number that the largest magnitude maps to. block: inputs that
    share a scale, None where blocks are not a matter of the inputs."""

    data_type: int
    largest: float
    weight: dict[str, Any]
    activation: dict[str, Any] | None
    block: int | None = None


_FP8, _INT8 = {"num_bits": (4, 3), "axis": None}, {"num_bits": 8, "axis": None}
_NVFP4 = {
    "num_bits": (2, 1),
    "axis": None,
    "block_sizes": {-1: nvfp4.BLOCK, "type": "dynamic", "scale_bits": (4, 3)},
}
FORMATS: dict[Recipe, Format] = {
    "fp8": Format(onnx.TensorProto.FLOAT8E4M3FN, 448, _FP8, _FP8),
    "int8": Format(onnx.TensorProto.INT8, 127, {"num_bits": 8, "axis": 0}, _INT8),
    "nvfp4": Format(onnx.TensorProto.FLOAT4E2M1, nvfp4.LARGEST, _NVFP4, _NVFP4, nvfp4.BLOCK),
    "int4": Format(
        onnx.TensorProto.INT4, 7, {"num_bits": 4, "block_sizes": {-1: INT4_BLOCK}}, None, INT4_BLOCK
    ),
}


@dataclass(frozen=True)
class QuantizedLinear:
    """codes: bytes of [in, out] in the ONNX layout of `precision`'s format. weight_scale: bf16, [] per
    tensor, [out] per channel or [in / 128, out] per block of int4. block_scales: nvfp4's own, FP8 bytes of
    [in / 16, out]. input_scale: bf16 scalar, None for weight-only."""

    precision: Recipe
    shape: tuple[int, int]
    codes: bytes
    weight_scale: Tensor
    input_scale: Tensor | None
    block_scales: bytes | None = None

    @property
    def data_type(self) -> int:
        """ONNX's, of the codes."""
        return FORMATS[self.precision].data_type


def precision_of(layer: str, recipe: Recipe) -> Recipe:
    """The format that `recipe` holds a layer in."""
    return "fp8" if recipe == "nvfp4" and layer.rpartition(".")[2] not in MLP else recipe


def calibrate(
    module: nn.Module, layers: list[str], recipe: Recipe, inputs: Callable[[], Iterator[dict[str, Tensor]]]
) -> nn.Module:
    """Runs `inputs` through `module` with ModelOpt's quantizers on `layers` and nowhere else.

    Everything is off first, because ModelOpt's presets switch towers off by the names of their parts.
    Errors: ParamsError for a layer that the recipe cannot hold.
    """
    config: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for name in layers:
        precision = precision_of(name, recipe)
        form = FORMATS[precision]
        width = cast(nn.Linear, module.get_submodule(name)).in_features
        if form.block and width % form.block:
            raise ParamsError(
                f"{name} has {width} inputs, which {precision}'s blocks of {form.block} do not divide: "
                "add it to this component's `keep`, or choose another recipe"
            )
        config.append({"quantizer_name": f"{name}.weight_quantizer", "cfg": form.weight, "enable": True})
        if form.activation is not None:
            config.append(
                {"quantizer_name": f"{name}.input_quantizer", "cfg": form.activation, "enable": True}
            )

    def forward_all(model: nn.Module) -> None:
        for sample in inputs():
            model(**sample)

    return mtq.quantize(module, {"quant_cfg": config, "algorithm": "max"}, forward_all)


def encode(linear: Any, name: str, recipe: Recipe) -> QuantizedLinear:
    """Codes and scales of a layer that ModelOpt calibrated (its QuantLinear).

    Errors: EngineError for a range that is not finite, or an input that was always zero.
    """
    precision = precision_of(name, recipe)
    form = FORMATS[precision]
    weight = linear.weight.detach().float()
    out, inputs = weight.shape
    scale = _scale(linear.weight_quantizer, precision, f"{name} weights")
    block_scales = None
    if precision == "nvfp4":
        codes, block_scales = nvfp4.encode(weight, scale.item())
    elif precision == "int4":
        scale = scale.reshape(out, inputs // INT4_BLOCK)
        codes = _bytes(weight / scale.float().repeat_interleave(INT4_BLOCK, 1), precision)
        scale = scale.t().contiguous()
    else:
        scale = scale.flatten() if scale.numel() > 1 else scale.reshape(())
        codes = _bytes(weight / scale.float().unsqueeze(-1), precision)
    input_scale = None
    if form.activation is not None:
        input_scale = _scale(linear.input_quantizer, precision, f"{name} activations").reshape(())
        if not (linear.input_quantizer.amax > 0).all():
            raise EngineError(
                f"{name}: its input is zero in every calibration observation, so nothing is known of its "
                "range; calibrate on real observations"
            )
    return QuantizedLinear(precision, (inputs, out), codes, scale, input_scale, block_scales)


def _scale(quantizer: Any, precision: Recipe, what: str) -> Tensor:
    amax = quantizer.amax
    if amax is None or not torch.isfinite(amax).all() or (amax < 0).any():
        raise EngineError(f"{what}: calibration found the range {amax}; the calibration set is unusable")
    # A block or channel of zeros has no range; any scale represents it, zero would divide by itself.
    amax = torch.where(amax > 0, amax.float(), torch.ones_like(amax, dtype=torch.float32))
    if precision == "nvfp4":
        return torch.tensor(nvfp4.tensor_scale(amax.item()), dtype=torch.bfloat16)
    return (amax / FORMATS[precision].largest).to(torch.bfloat16)


def _bytes(values: Tensor, precision: Recipe) -> bytes:
    """`values` [out, in] rounded to codes, as ONNX stores [in, out]: one byte each, or for int4 two a byte,
    the low half first."""
    values = values.t().contiguous()
    if precision == "fp8":
        return values.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8).numpy().tobytes()
    if precision == "int8":
        return values.round().clamp(-128, 127).to(torch.int8).numpy().tobytes()
    nibbles = (values.round().clamp(-8, 7).to(torch.int8) & 0xF).view(torch.uint8).flatten()
    return (nibbles[0::2] | (nibbles[1::2] << 4)).numpy().tobytes()
