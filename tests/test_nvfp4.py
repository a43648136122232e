"""NVFP4: codes equal ModelOpt's and a plain search for the nearest number, and nothing is rounded twice."""

import math
from contextlib import chdir
from pathlib import Path

import modelopt.torch.quantization.tensor_quant as tensor_quant
import numpy as np
import onnx
import pytest
import torch
from modelopt.torch.quantization.qtensor import NVFP4QTensor
from onnx import TensorProto, helper
from torch import Tensor, nn

from export import nvfp4
from export.artifacts import quantized_folder
from export.layer_table import read_table
from export.recipes import calibrate, encode
from pi05_runtime.engines.ort import open_session
from pi05_runtime.errors import ParamsError
from tests.pipeline import change_params, run_stage

EVERY_CODE = torch.tensor([*nvfp4.GRID, *(-x for x in nvfp4.GRID)])


def numbers(packed: Tensor) -> Tensor:
    """What packed codes stand for, in order."""
    return EVERY_CODE[torch.stack([packed & 15, packed >> 4], -1).flatten().long()]


def nearest(values: Tensor) -> Tensor:
    """The nearest E2M1 number by comparing with every one; of two equally near, the even code's."""
    magnitude = values.abs().unsqueeze(-1)
    distance = (magnitude - torch.tensor(nvfp4.GRID)).abs()
    odd = torch.arange(len(nvfp4.GRID)) % 2
    code = (distance.double() + odd * 1e-9).argmin(-1)
    return torch.tensor(nvfp4.GRID)[code] * values.sign()


def fake_quantize(
    inputs: Tensor, block_size: int, amax: Tensor, *bits: int
) -> Tensor:  # ModelOpt's own needs a GPU
    assert bits == (4, 2, 8, 4)
    scale = amax.float().max() / nvfp4.LARGEST
    blocks = inputs.float().unflatten(-1, (-1, block_size))
    step = (blocks.abs().amax(-1, keepdim=True) / 6 / scale).clamp(max=448)
    step = step.to(torch.float8_e4m3fn).float() * scale
    restored = nearest((blocks / step).nan_to_num(0, 0, 0)) * step
    return restored.flatten(-2).to(inputs.dtype)


def fake_quantize_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a module with ModelOpt's NVFP4 quantizers run here."""
    monkeypatch.setattr(tensor_quant, "dynamic_block_quantize_op", fake_quantize)


def cpu_model(node: onnx.NodeProto, initializers: list[TensorProto], output: str) -> onnx.ModelProto:
    """An fp32 model of one of our operators, over input x if the node reads it."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 32])] if "x" in node.input else []
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, [None, None])]
    model = helper.make_model(
        helper.make_graph([node], "one", inputs, outputs, initializers),
        opset_imports=[helper.make_opsetid("", 22)],
        ir_version=10,
    )
    nvfp4.define_for_cpu(model)
    return model


def run(model: onnx.ModelProto, folder: Path, **arrays: np.ndarray) -> Tensor:
    onnx.checker.check_model(model)
    onnx.save(model, folder / "one.onnx")
    return torch.from_numpy(np.asarray(open_session(folder / "one.onnx").run([], arrays)[0]))


def test_every_number_has_its_code():
    assert nvfp4.e2m1_codes(EVERY_CODE).tolist() == [*range(8), 0, *range(9, 16)]


@pytest.mark.parametrize("sign", [1, -1])
def test_ties_go_to_the_even_code_and_the_rest_to_the_nearest(sign: int):
    ties = [(a + b) / 2 for a, b in zip(nvfp4.GRID, nvfp4.GRID[1:], strict=False)]
    codes = nvfp4.e2m1_codes(sign * torch.tensor(ties))
    assert (codes & 7).tolist() == [0, 2, 2, 4, 4, 6, 6]
    between = sign * torch.linspace(0, 7, 7001)
    assert torch.equal(EVERY_CODE[nvfp4.e2m1_codes(between).long()].abs(), nearest(between).abs())


@pytest.mark.parametrize("amax", [1e-6, 0.37, 2687.9, 2688.0, 2688.1, 3e4])
def test_tensor_scale_is_the_smallest_power_of_two_that_fits(amax: float):
    scale = nvfp4.tensor_scale(amax)
    assert math.frexp(scale)[0] == 0.5
    assert scale / 2 < amax / nvfp4.LARGEST <= scale


def test_bf16_holds_every_code_times_every_scale():
    fp8 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    fp8 = fp8[fp8.isfinite()]
    for exponent in (-30, 0, 10):
        step = fp8 * 2.0**exponent
        assert torch.equal(step.bfloat16().float(), step)
        product = EVERY_CODE[:, None] * step
        assert torch.equal(product.bfloat16().float(), product)


@pytest.mark.parametrize("spread", [1.0, 1e-3, 1e3])
def test_weights_are_modelopts(spread: float):
    weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(0)) * spread
    weight *= torch.logspace(-4, 0, 48)[:, None]
    scale = nvfp4.tensor_scale(weight.abs().max().item())
    codes, block_scales = nvfp4.encode(weight, scale)
    theirs, their_scales, _ = NVFP4QTensor.quantize(weight, nvfp4.BLOCK, None, torch.tensor(scale))
    ours = torch.frombuffer(bytearray(block_scales), dtype=torch.uint8).reshape(4, 48).t()
    assert torch.equal(ours, their_scales.view(torch.uint8))
    found = numbers(torch.frombuffer(bytearray(codes), dtype=torch.uint8)).reshape(64, 48).t()
    assert torch.equal(found, numbers(theirs._quantized_data).reshape(48, 64))


def test_cpu_restores_the_weight_that_was_encoded(tmp_path: Path):
    weight = torch.randn(6, 48, generator=torch.Generator().manual_seed(1))
    weight[:, 16:32] = 0
    scale = nvfp4.tensor_scale(weight.abs().max().item())
    codes, block_scales = nvfp4.encode(weight, scale)
    tensors = [
        TensorProto(name="codes", data_type=TensorProto.FLOAT4E2M1, dims=[48, 6], raw_data=codes),
        TensorProto(
            name="block_scales", data_type=TensorProto.FLOAT8E4M3FN, dims=[3, 6], raw_data=block_scales
        ),
        helper.make_tensor("scale", TensorProto.FLOAT, [], [scale]),
    ]
    node = helper.make_node(
        nvfp4.RESTORE, ["codes", "block_scales", "scale"], ["weight"], domain=nvfp4.DOMAIN
    )
    restored = run(cpu_model(node, tensors, "weight"), tmp_path)
    amax = torch.tensor(scale * nvfp4.LARGEST)
    assert torch.equal(restored.t(), fake_quantize(weight, nvfp4.BLOCK, amax, 4, 2, 8, 4))
    assert torch.equal(restored[16:32], torch.zeros(16, 6))


@pytest.mark.parametrize("amax", [0.5, 4.0, 100.0])
def test_cpu_rounds_activations_as_modelopt_fakes_it(tmp_path: Path, amax: float):
    """Under ranges that fit, that saturate and that leave small blocks no scale."""
    scale = nvfp4.tensor_scale(amax)
    x = torch.randn(400, 32, generator=torch.Generator().manual_seed(2))
    x *= torch.logspace(-9, 0, 400)[:, None]
    x[7] = 0
    node = helper.make_node(nvfp4.ROUND, ["x", "scale"], ["y"], domain=nvfp4.DOMAIN)
    model = cpu_model(node, [helper.make_tensor("scale", TensorProto.FLOAT, [], [scale])], "y")
    y = run(model, tmp_path, x=x.numpy())
    expected = fake_quantize(x, nvfp4.BLOCK, torch.tensor(scale * nvfp4.LARGEST), 4, 2, 8, 4)
    assert torch.equal(y, expected)
    assert y.isfinite().all()


def test_every_tie_of_an_activation_goes_to_the_even_code(tmp_path: Path):
    """A block whose largest number is 6 under scale 1 has a step of exactly 1."""
    ties = [(a + b) / 2 for a, b in zip(nvfp4.GRID, nvfp4.GRID[1:], strict=False)]
    block = torch.tensor([6.0, *ties, *(-x for x in ties), 0.0])
    node = helper.make_node(nvfp4.ROUND, ["x", "scale"], ["y"], domain=nvfp4.DOMAIN)
    model = cpu_model(node, [helper.make_tensor("scale", TensorProto.FLOAT, [], [1.0])], "y")
    y = run(model, tmp_path, x=block.repeat(1, 2).numpy())
    even = [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]
    assert y[0, :16].tolist() == [6.0, *even, *(-x for x in even), 0.0]


def test_a_layer_that_blocks_do_not_divide_is_named():
    module = nn.ModuleDict({"down": nn.Linear(24, 8, bias=False).bfloat16()})
    with pytest.raises(ParamsError, match=r"down has 24 inputs.*blocks of 16"):
        calibrate(module, ["down"], "nvfp4", lambda: iter(()))


def test_a_weight_of_zeros_stays_zero():
    module = nn.ModuleDict({"down": nn.Linear(16, 2, bias=False).bfloat16()})
    module["down"].weight.data.zero_()
    module.forward = lambda x: module["down"](x)
    quantized = calibrate(module, ["down"], "nvfp4", lambda: iter([{"x": torch.ones(1, 16).bfloat16()}]))
    layer = encode(quantized["down"], "down", "nvfp4")
    assert layer.block_scales == bytes(2)
    assert layer.weight_scale.isfinite() and layer.weight_scale > 0


def test_mlps_are_nvfp4_and_the_rest_is_fp8(copied_workspace: Path):
    change_params(copied_workspace, components__denoise={"recipe": "nvfp4", "fallback": "fp8"})
    run_stage(copied_workspace, "export.quantize", "denoise")
    with chdir(copied_workspace):
        folder = quantized_folder("denoise", "nvfp4")
        bf16, fp32 = (
            onnx.load(folder / f"{twin}.onnx", load_external_data=False) for twin in ("bf16", "fp32")
        )
        table = read_table("denoise", "nvfp4")
    held = {row.name: row.precision for row in table.layers}
    assert {held[f"layers.{i}.{name}"] for i in range(3) for name in ("gate_up", "down")} == {"nvfp4"}
    assert {held[f"layers.{i}.{name}"] for i in range(3) for name in ("qkv", "o")} == {"fp8"}
    types = {t.name: t.data_type for t in bf16.graph.initializer}
    assert types["denoise.layers.0.down.codes"] == TensorProto.FLOAT4E2M1
    assert types["denoise.layers.0.qkv.codes"] == TensorProto.FLOAT8E4M3FN
    assert {o.domain: o.version for o in bf16.opset_import} == {"": 23, "trt": 1}
    assert {n.op_type for n in bf16.graph.node if n.domain} == {"TRT_FP4DynamicQuantize"}
    assert {n.op_type for n in fp32.graph.node if n.domain} == {nvfp4.ROUND, nvfp4.RESTORE}
    assert TensorProto.FLOAT4E2M1 not in {t.data_type for t in fp32.graph.initializer}
