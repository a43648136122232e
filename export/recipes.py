"""Recipes: how a linear layer's weights and activations become codes and scales.

ModelOpt calibrates and its quantizers hold the ranges; this file says which quantizers a recipe
turns on, and rounds ranges to the bf16 scales and codes that both ONNX twins and every engine share.
TensorRT wants a scale in the dtype of the activations, so a scale is a bf16 number everywhere.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import modelopt.torch.quantization as mtq
import onnx
import torch
from torch import Tensor, nn

from export.params import Recipe
from pi05_runtime.errors import EngineError, ParamsError

INT4_BLOCK = 128
"""Inputs that share one int4 scale."""


@dataclass(frozen=True)
class Format:
    """Number format of a recipe. weight and activation: ModelOpt quantizer settings; activation None
    leaves activations alone. largest: the code that the largest magnitude maps to."""

    data_type: int
    largest: float
    weight: dict[str, Any]
    activation: dict[str, Any] | None


_FP8, _INT8 = {"num_bits": (4, 3), "axis": None}, {"num_bits": 8, "axis": None}
FORMATS: dict[Recipe, Format] = {
    "fp8": Format(onnx.TensorProto.FLOAT8E4M3FN, 448, _FP8, _FP8),
    "int8": Format(onnx.TensorProto.INT8, 127, {"num_bits": 8, "axis": 0}, _INT8),
    "int4": Format(onnx.TensorProto.INT4, 7, {"num_bits": 4, "block_sizes": {-1: INT4_BLOCK}}, None),
}


@dataclass(frozen=True)
class QuantizedLinear:
    """codes: bytes of [in, out] in the format's ONNX layout. weight_scale: bf16, [] per tensor, [out]
    per channel or [in / 128, out] per block. input_scale: bf16 scalar, None for weight-only."""

    data_type: int
    shape: tuple[int, int]
    codes: bytes
    weight_scale: Tensor
    input_scale: Tensor | None


def calibrate(
    module: nn.Module, layers: list[str], recipe: Recipe, inputs: Callable[[], Iterator[dict[str, Tensor]]]
) -> nn.Module:
    """Runs `inputs` through `module` with ModelOpt's quantizers on `layers` and nowhere else.

    Everything is off first, because ModelOpt's presets switch towers off by the names of their parts.
    Errors: ParamsError for a layer that the recipe cannot hold.
    """
    form = FORMATS[recipe]
    config: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for name in layers:
        width = cast(nn.Linear, module.get_submodule(name)).in_features
        if recipe == "int4" and width % INT4_BLOCK:
            raise ParamsError(
                f"{name} has {width} inputs, which int4's blocks of {INT4_BLOCK} do not divide: "
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
    form = FORMATS[recipe]
    weight = linear.weight.detach().float()
    out, inputs = weight.shape
    scale = _scale(linear.weight_quantizer, form, f"{name} weights")
    if recipe == "int4":
        scale = scale.reshape(out, inputs // INT4_BLOCK)
        codes = weight / scale.float().repeat_interleave(INT4_BLOCK, 1)
        scale = scale.t().contiguous()
    else:
        scale = scale.flatten() if scale.numel() > 1 else scale.reshape(())
        codes = weight / scale.float().unsqueeze(-1)
    input_scale = None
    if form.activation is not None:
        input_scale = _scale(linear.input_quantizer, form, f"{name} activations").reshape(())
        if not (linear.input_quantizer.amax > 0).all():
            raise EngineError(
                f"{name}: its input is zero in every calibration observation, so nothing is known of its "
                "range; calibrate on real observations"
            )
    return QuantizedLinear(
        form.data_type, (inputs, out), _bytes(codes.t().contiguous(), recipe), scale, input_scale
    )


def _scale(quantizer: Any, form: Format, what: str) -> Tensor:
    amax = quantizer.amax
    if amax is None or not torch.isfinite(amax).all() or (amax < 0).any():
        raise EngineError(f"{what}: calibration found the range {amax}; the calibration set is unusable")
    # A block or channel of zeros has no range; any scale represents it, zero would divide by itself.
    amax = torch.where(amax > 0, amax.float(), torch.ones_like(amax, dtype=torch.float32))
    return (amax / form.largest).to(torch.bfloat16)


def _bytes(values: Tensor, recipe: Recipe) -> bytes:
    """Rounded codes as ONNX stores them: one byte each, or for int4 two a byte, the low half first."""
    if recipe == "fp8":
        return values.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8).numpy().tobytes()
    if recipe == "int8":
        return values.round().clamp(-128, 127).to(torch.int8).numpy().tobytes()
    nibbles = (values.round().clamp(-8, 7).to(torch.int8) & 0xF).view(torch.uint8).flatten()
    return (nibbles[0::2] | (nibbles[1::2] << 4)).numpy().tobytes()
