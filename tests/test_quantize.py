"""Recipes: codes and scales equal ModelOpt's own arithmetic, in twins that share every byte."""

import itertools
import math
import shutil
import subprocess
from contextlib import chdir
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import nn

from export import nvfp4
from export.artifacts import WEIGHTS, quantized_folder
from export.component import build_component, component_inputs
from export.engine.ort import to_numpy
from export.layer_table import read_table
from export.params import ComponentParams, load_params
from export.quantize import choose_layers
from export.recipes import FORMATS, INT4_BLOCK, QuantizedLinear, calibrate, encode, precision_of
from pi05_runtime.engines.ort import open_session
from pi05_runtime.errors import EngineError, ParamsError
from pi05_runtime.geometry import COMPONENTS
from tests.pipeline import change_params, run_stage
from tests.test_nvfp4 import fake_quantize_on_cpu, numbers

QUANTIZED = ("fp8", "int8", "nvfp4", "int4")
SAMPLES = 3
EXACT = 1e-5
TURNED = {"fp8": 5e-2, "int8": 5e-2, "nvfp4": 1e-1, "int4": EXACT}
"""Relative L2 of a sample in which one ulp turned the code of an activation that lies on an edge: the
layers behind it carry that on, as far as a recipe's own error. int4 rounds no activation."""
TIES = 3e-4
"""Share of weight codes that may differ from ModelOpt's: it multiplies by 1 / scale where we divide,
and bf16 weights over bf16 scales often lie exactly between two codes."""


def restored(layer: QuantizedLinear) -> torch.Tensor:
    """The weight [out, in] that a layer's codes and scales stand for."""
    inputs, out = layer.shape
    codes = torch.frombuffer(bytearray(layer.codes), dtype=torch.uint8)
    if layer.block_scales is not None:
        scales = torch.frombuffer(bytearray(layer.block_scales), dtype=torch.float8_e4m3fn).float()
        step = scales.reshape(-1, 1, out) * layer.weight_scale.float()
        return (numbers(codes).reshape(-1, nvfp4.BLOCK, out) * step).reshape(inputs, out).t()
    if layer.data_type == TensorProto.INT4:
        codes = torch.stack([codes & 15, codes >> 4], -1).flatten().to(torch.int8)
        values = torch.where(codes > 7, codes - 16, codes).float()
    elif layer.data_type == TensorProto.INT8:
        values = codes.view(torch.int8).float()
    else:
        values = codes.view(torch.float8_e4m3fn).float()
    scale = layer.weight_scale.float()
    if scale.ndim == 2:
        scale = scale.repeat_interleave(INT4_BLOCK, 0)
    return (values.reshape(inputs, out) * scale).t()


def calibrated(component: str, recipe: str) -> tuple[nn.Module, dict[str, QuantizedLinear]]:
    """ModelOpt's own fake-quantized module in fp32, its ranges rounded as ours are, and our codes."""
    params = load_params()
    module = build_component(component, params)
    layers = choose_layers(module, ComponentParams(recipe))
    module = calibrate(module, layers, recipe, lambda: component_inputs(component))
    codes = {name: encode(module.get_submodule(name), name, recipe) for name in layers}
    module = module.float()
    for name in layers:
        layer = module.get_submodule(name)
        precision = precision_of(name, recipe)
        largest = FORMATS[precision].largest
        for quantizer in (layer.weight_quantizer, layer.input_quantizer):
            if quantizer.is_enabled:
                scale = quantizer.amax.float() / largest
                scale = scale.log2().ceil().exp2() if precision == "nvfp4" else scale.to(torch.bfloat16)
                quantizer.amax = scale.float() * largest
    return module, codes


@pytest.mark.parametrize("recipe", QUANTIZED)
@pytest.mark.parametrize("component", COMPONENTS)
@torch.no_grad()
def test_cpu_twin_equals_modelopt(
    copied_workspace: Path, monkeypatch: pytest.MonkeyPatch, component: str, recipe: str
):
    fake_quantize_on_cpu(monkeypatch)
    change_params(copied_workspace, **{f"components__{component}": {"recipe": recipe}})
    run_stage(copied_workspace, "export.quantize", component)
    with chdir(copied_workspace):
        module, codes = calibrated(component, recipe)
        for name, quantized in codes.items():
            layer = module.get_submodule(name)
            ours = restored(quantized)
            share = (layer.weight_quantizer(layer.weight) - ours).abs().gt(1e-6).float().mean()
            assert share <= TIES, (name, share)
            layer.weight.data = ours
            layer.weight_quantizer.disable()
        session = open_session(quantized_folder(component, recipe) / "fp32.onnx")
        errors: list[float] = []
        for _, sample in zip(range(SAMPLES), component_inputs(component), strict=False):
            arrays = {name: to_numpy(tensor) for name, tensor in sample.items()}
            expected = module(**{name: torch.from_numpy(np.asarray(a)) for name, a in arrays.items()})
            expected = expected if isinstance(expected, tuple) else (expected,)
            for found, want in zip(session.run(None, arrays), expected, strict=True):
                error = np.linalg.norm(found - want.numpy()) / np.linalg.norm(want.numpy())
                errors.append(error)
    assert min(errors) <= EXACT
    assert max(errors) <= TURNED[recipe]


@pytest.fixture(scope="module")
def recipes(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which every component is quantized to nvfp4 and, as a fallback, to fp8."""
    folder = shutil.copytree(workspace, tmp_path_factory.mktemp("recipes") / "workspace")
    for component in COMPONENTS:
        change_params(folder, **{f"components__{component}": {"recipe": "nvfp4", "fallback": "fp8"}})
        run_stage(folder, "export.quantize", component)
    return folder


def twin(workspace: Path, component: str, recipe: str, name: str) -> onnx.ModelProto:
    with chdir(workspace):
        return onnx.load(quantized_folder(component, recipe) / f"{name}.onnx", load_external_data=False)


@pytest.mark.parametrize("recipe", ["nvfp4", "fp8"])
@pytest.mark.parametrize("component", COMPONENTS)
def test_twins_read_the_same_bytes(recipes: Path, component: str, recipe: str):
    def external(name: str) -> dict[str, tuple[int, list[int], dict[str, str]]]:
        return {
            t.name: (t.data_type, list(t.dims), {e.key: e.value for e in t.external_data})
            for t in twin(recipes, component, recipe, name).graph.initializer
            if t.data_location == TensorProto.EXTERNAL
        }

    bf16, fp32 = external("bf16"), external("fp32")
    packed = {name for name, entry in bf16.items() if entry[0] == TensorProto.FLOAT4E2M1}
    assert bool(packed) == (recipe == "nvfp4")
    for name in packed:  # two numbers a byte, which ONNX Runtime reads as bytes
        _, dims, place = bf16[name]
        assert fp32[name] == (TensorProto.UINT8, [math.prod(dims) // 2], place)
    assert {n: e for n, e in bf16.items() if n not in packed} == {
        n: e for n, e in fp32.items() if n not in packed
    }
    end = max(int(place["offset"]) + int(place["length"]) for _, _, place in bf16.values())
    with chdir(recipes):
        assert end == (quantized_folder(component, recipe) / WEIGHTS).stat().st_size


@pytest.mark.parametrize("component", COMPONENTS)
def test_no_name_of_a_component_can_meet_another_components(recipes: Path, component: str):
    """TensorRT refuses a second tensor or weight of a name, and reports layers by the names of nodes."""
    for recipe, name in itertools.product(("nvfp4", "fp8"), ("bf16", "fp32")):
        graph = twin(recipes, component, recipe, name).graph
        ports = {p.name for p in (*graph.input, *graph.output)}
        names = {x for n in graph.node for x in (n.name, *n.output) if x} | {
            t.name for t in graph.initializer
        }
        assert all(x.startswith(f"{component}.") for x in names - ports)
        assert not any(x.startswith(f"{component}.") for x in ports)
        with chdir(recipes):
            layers = {row.name for row in read_table(component, recipe).layers}
        products = {n.name for n in graph.node if n.op_type == "MatMul"}
        assert {f"{component}.{layer}.MatMul" for layer in layers} <= products


def test_every_recipe_has_a_folder_and_no_other_is_left(recipes: Path, tmp_path: Path):
    folder = shutil.copytree(recipes, tmp_path / "workspace")
    here = folder / "artifacts" / "quantized" / "denoise"
    assert {p.name for p in here.iterdir()} == {"nvfp4", "fp8"}
    before = {p.name: p.read_bytes() for p in (here / "fp8").iterdir()}
    change_params(folder, components__denoise={"recipe": "fp8"})
    run_stage(folder, "export.quantize", "denoise")
    assert {p.name for p in here.iterdir()} == {"fp8"}
    assert {p.name: p.read_bytes() for p in (here / "fp8").iterdir()} == before


def test_nvfp4_is_deterministic(recipes: Path, tmp_path: Path):
    folder = shutil.copytree(recipes, tmp_path / "workspace")
    here = folder / "artifacts" / "quantized" / "prefill" / "nvfp4"
    before = {p.name: p.read_bytes() for p in here.iterdir()}
    run_stage(folder, "export.quantize", "prefill")
    assert {p.name: p.read_bytes() for p in here.iterdir()} == before


@pytest.mark.parametrize("recipe", ["nvfp4", "fp8"])
@pytest.mark.parametrize("component", COMPONENTS)
def test_fp32_twin_has_no_bf16_but_weights(recipes: Path, component: str, recipe: str):
    model = twin(recipes, component, recipe, "fp32")
    casts = {n.input[0] for n in model.graph.node if n.op_type == "Cast"}
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.BFLOAT16:
            assert tensor.name in casts
    for port in [*model.graph.input, *model.graph.output]:
        assert port.type.tensor_type.elem_type != TensorProto.BFLOAT16


@pytest.mark.parametrize("component", COMPONENTS)
def test_bf16_graph_rounds_no_scalar(workspace: Path, component: str):
    """A Python scalar multiplied in bf16 becomes a rounded constant of the graph; there must be none
    but powers of two. It once cost the vision tower 0.1% of its attention scale."""
    model = onnx.load(workspace / "artifacts" / "graph" / component / "model.onnx")
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.BFLOAT16 and not tensor.dims:
            mantissa, _ = np.frexp(float(onnx.numpy_helper.to_array(tensor)))
            assert abs(mantissa) in (0, 0.5), tensor.name


def test_table_lists_every_linear(recipes: Path):
    with chdir(recipes):
        for component in COMPONENTS:
            table = read_table(component, "fp8")
            linears = [
                n
                for n, m in build_component(component, load_params()).named_modules()
                if isinstance(m, nn.Linear)
            ]
            assert [row.name for row in table.layers] == linears
        prefill = read_table("prefill", "fp8")
    assert {row.precision for row in prefill.layers} == {"fp8"}
    assert prefill.quantized == 1.0
    assert prefill.calibration_sha256 is not None


def test_keep_leaves_named_layers_in_bf16(copied_workspace: Path):
    change_params(copied_workspace, components__denoise={"recipe": "int8", "keep": ["layers.0.*", "*.down"]})
    run_stage(copied_workspace, "export.quantize", "denoise")
    with chdir(copied_workspace):
        rows = {row.name: row for row in read_table("denoise", "int8").layers}
    model = twin(copied_workspace, "denoise", "int8", "bf16")
    kept = {name for name in rows if name.startswith("layers.0.") or name.endswith(".down")}
    assert {name for name, row in rows.items() if row.reason == "keep"} == kept
    weights = {t.name: t.data_type for t in model.graph.initializer}
    assert all(weights[f"denoise.{name}.weight"] == TensorProto.BFLOAT16 for name in kept)
    assert weights["denoise.layers.1.qkv.codes"] == TensorProto.INT8


@pytest.mark.parametrize(
    ("component", "entry", "message"),
    [
        ("prefill", {"recipe": "fp8", "keep": ["layers.9.*"]}, "matches no layer"),
        ("prefill", {"recipe": "fp8", "keep": ["*"]}, "leaves nothing to quantize"),
    ],
)
def test_keep_that_makes_no_sense_is_refused(
    copied_workspace: Path, component: str, entry: dict[str, object], message: str
):
    here = copied_workspace / "artifacts" / "quantized" / component
    before = {p: p.read_bytes() for p in here.rglob("*") if p.is_file()}
    change_params(copied_workspace, **{f"components__{component}": entry})
    with pytest.raises(ParamsError, match=message):
        run_stage(copied_workspace, "export.quantize", component)
    assert {p: p.read_bytes() for p in here.rglob("*") if p.is_file()} == before
    assert not list(here.parent.glob(".*"))


def test_int4_names_a_layer_that_its_blocks_do_not_divide():
    module = nn.Sequential(nn.Linear(100, 8, bias=False).bfloat16())
    with pytest.raises(ParamsError, match="100 inputs"):
        calibrate(module, ["0"], "int4", lambda: iter(()))


def test_a_range_that_is_not_finite_is_refused():
    module = nn.Sequential(nn.Linear(128, 8, bias=False).bfloat16())
    broken = torch.full((1, 128), float("nan"), dtype=torch.bfloat16)
    with pytest.raises(Exception, match=r"(?i)nan|found the range"):
        encode(calibrate(module, ["0"], "fp8", lambda: iter([{"input": broken}]))[0], "0", "fp8")


@pytest.mark.parametrize("recipe", ["nvfp4", "fp8"])
@pytest.mark.parametrize("component", COMPONENTS)
def test_polygraphy_finds_nothing_wrong_with_the_cpu_twin(recipes: Path, component: str, recipe: str):
    model = recipes / "artifacts" / "quantized" / component / recipe / "fp32.onnx"
    done = subprocess.run(["polygraphy", "check", "lint", str(model)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "PASSED" in done.stdout


def test_an_input_that_was_always_zero_is_refused():
    module = nn.Sequential(nn.Linear(128, 8, bias=False).bfloat16())
    silent = torch.zeros((1, 128), dtype=torch.bfloat16)
    calibrated = calibrate(module, ["0"], "fp8", lambda: iter([{"input": silent}]))
    with pytest.raises(EngineError, match="zero in every calibration observation"):
        encode(calibrated.get_submodule("0"), "0", "fp8")
