"""The native Attention in TensorRT's graph computes what the written-out form does."""

import shutil
from contextlib import chdir
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from export.artifacts import WEIGHTS, quantized_folder
from export.attention import use_native_attention
from export.component import component_inputs
from export.twins import fp32_twin
from pi05_runtime.engines.ort import open_session
from pi05_runtime.errors import EngineError
from pi05_runtime.geometry import COMPONENTS
from tests.pipeline import change_params, run_stage

ATTENTIONS = {"vision": 3, "prefill": 2, "denoise": 3}
"""Layers that attend in the demo: the prefix stack's last one does not."""


@pytest.fixture(scope="module")
def native(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose graphs for TensorRT have native attention, in fp8."""
    folder = shutil.copytree(workspace, tmp_path_factory.mktemp("native") / "workspace")
    change_params(folder, export__attention="native")
    for component in COMPONENTS:
        change_params(folder, **{f"components__{component}": {"recipe": "fp8"}})
        run_stage(folder, "export.quantize", component)
    return folder


@pytest.mark.parametrize("component", COMPONENTS)
def test_only_tensorrts_graph_has_the_operator(native: Path, component: str):
    with chdir(native):
        folder = quantized_folder(component, "fp8")
        bf16, fp32 = (
            [n.op_type for n in onnx.load(folder / f"{twin}.onnx", load_external_data=False).graph.node]
            for twin in ("bf16", "fp32")
        )
    assert (bf16.count("Attention"), bf16.count("Softmax")) == (ATTENTIONS[component], 0)
    assert (fp32.count("Attention"), fp32.count("Softmax")) == (0, ATTENTIONS[component])


@pytest.mark.parametrize("component", COMPONENTS)
def test_it_computes_what_the_written_out_form_does(native: Path, tmp_path: Path, component: str):
    """Both in fp32 by ONNX Runtime, which knows the operator too; the mask hides part of every prompt."""
    with chdir(native):
        folder = quantized_folder(component, "fp8")
        shutil.copy(folder / WEIGHTS, tmp_path)
        sample = next(component_inputs(component))
        arrays = {k: (v.float() if v.dtype == torch.bfloat16 else v).numpy() for k, v in sample.items()}
        twin = fp32_twin(onnx.load(folder / "bf16.onnx", load_external_data=False))
        onnx.save(twin, tmp_path / "native.onnx")
        if component == "prefill":
            arrays["prefix_length"] -= 3
        written_out = open_session(folder / "fp32.onnx").run([], arrays)
    for found, want in zip(open_session(tmp_path / "native.onnx").run([], arrays), written_out, strict=True):
        assert np.linalg.norm(found - want) / np.linalg.norm(want) < 1e-5


def test_a_softmax_of_another_kind_is_refused():
    graph = helper.make_graph(
        [helper.make_node("Softmax", ["x"], ["y"], "odd")],
        "odd",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2])],
    )
    with pytest.raises(EngineError, match="odd: a port found where attention has a Mul"):
        use_native_attention(helper.make_model(graph))
