"""TensorRT's real parser and compiler take the quantized graphs, and the engine does what the graph says.

TensorRT for RTX builds for a chip that is not there; what its builder logs of the engine is the evidence.
"""

import shutil
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import tensorrt_rtx

from export.artifacts import quantized_folder
from export.component import component_inputs
from export.layer_table import read_table
from pi05_runtime.build.evidence import judge
from pi05_runtime.build.layers import EngineLayer, read_layers
from pi05_runtime.build.network import create_network
from pi05_runtime.build.watch import BuildLog, library_log
from pi05_runtime.geometry import COMPONENTS
from tests.pipeline import change_params, run_stage

ATTENTIONS = {"vision": 3, "prefill": 2, "denoise": 3}
"""Layers that attend in the demo: the prefix stack's last one does not."""


@pytest.fixture(scope="module", params=["decomposed", "native"])
def quantized(
    request: pytest.FixtureRequest, workspace: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """(form of attention, a workspace with every component in nvfp4 and in fp8)."""
    folder = shutil.copytree(workspace, tmp_path_factory.mktemp(request.param) / "workspace")
    change_params(folder, export__attention=request.param)
    for component in COMPONENTS:
        change_params(folder, **{f"components__{component}": {"recipe": "nvfp4", "fallback": "fp8"}})
        run_stage(folder, "export.quantize", component)
    return request.param, folder


def build(onnx: Path, shapes: dict[str, tuple[int, ...]]) -> tuple[EngineLayer, ...]:
    """The layers of an engine for SM120 with inputs of these shapes."""
    trt: Any = tensorrt_rtx
    log = BuildLog()
    bridge = library_log(trt, log)
    builder = trt.Builder(bridge)
    network = create_network(trt, builder)
    parser = trt.OnnxParser(network, bridge)
    assert parser.parse_from_file(str(onnx)), [str(parser.get_error(i)) for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    assert config.set_compute_capability(trt.ComputeCapability.SM120, 0)
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    if dynamic := [tensor.name for tensor in inputs if -1 in tensor.shape]:
        profile = builder.create_optimization_profile()
        for name in dynamic:
            profile.set_shape(name, *[shapes[name]] * 3)
        config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None, log.errors
    return read_layers(log.layers)


@pytest.mark.parametrize("recipe", ["nvfp4", "fp8"])
@pytest.mark.parametrize("component", COMPONENTS)
def test_every_product_runs_in_the_precision_of_the_table(
    quantized: tuple[str, Path], component: str, recipe: str
):
    attention, folder = quantized
    with chdir(folder):
        table = read_table(component, recipe)
        shapes = {name: tuple(tensor.shape) for name, tensor in next(component_inputs(component)).items()}
        layers = build(quantized_folder(component, recipe) / "bf16.onnx", shapes)
    evidence = judge([table], [layers], 1, "builder log")
    assert not evidence.faults, [str(fault) for fault in evidence.faults]
    planned = [row.precision for row in table.layers]
    assert {found: planned.count(found) for found in ("nvfp4", "fp8") if found in planned} == {
        found: count for found, count in evidence.precisions.items() if found in ("nvfp4", "fp8")
    }
    if attention == "native":
        assert sum("mha" in layer.name for layer in layers) == ATTENTIONS[component]
