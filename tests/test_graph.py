"""The traced graph keeps what quantization and engines rely on."""

from contextlib import chdir
from pathlib import Path

import onnx
import pytest
from torch import nn

from export.artifacts import MODEL, WEIGHTS
from export.checkpoint.canonical import read_description
from export.component import build_component
from export.graph import OPSET
from export.params import load_params
from pi05_runtime.geometry import COMPONENTS, signatures
from tests.pipeline import run_stage

DTYPES = {
    "float32": onnx.TensorProto.FLOAT,
    "int32": onnx.TensorProto.INT32,
    "activation": onnx.TensorProto.BFLOAT16,
}


def graph(workspace: Path, component: str) -> onnx.ModelProto:
    return onnx.load(workspace / "artifacts" / "graph" / component / MODEL, load_external_data=False)


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_linear_is_a_product_with_its_name(workspace: Path, component: str):
    with chdir(workspace):
        module = build_component(component, load_params())
    linears = {f"{component}.{n}": m for n, m in module.named_modules() if isinstance(m, nn.Linear)}
    model = graph(workspace, component)
    shapes = {t.name: list(t.dims) for t in model.graph.initializer}
    products = {n.name: n.input[1] for n in model.graph.node if n.op_type == "MatMul"}
    for name, linear in linears.items():
        assert products[f"{name}.MatMul"] == f"{name}.weight"
        assert shapes[f"{name}.weight"] == [linear.in_features, linear.out_features]


@pytest.mark.parametrize("component", COMPONENTS)
def test_ports_are_the_signature(workspace: Path, component: str):
    with chdir(workspace):
        d = read_description()
    ports = signatures(d.geometry, len(d.interface.cameras), d.interface.horizon)[component]
    model = graph(workspace, component).graph
    for found, expected in ((model.input, ports.inputs), (model.output, ports.outputs)):
        assert [p.name for p in found] == [p.name for p in expected]
        for port, want in zip(found, expected, strict=True):
            tensor = port.type.tensor_type
            assert tensor.elem_type == DTYPES[want.dtype]
            fixed = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
            assert fixed == [s if isinstance(s, int) else None for s in want.shape]


@pytest.mark.parametrize("component", COMPONENTS)
def test_opset_and_no_trace_of_this_machine(workspace: Path, component: str):
    path = workspace / "artifacts" / "graph" / component / MODEL
    assert [(o.domain, o.version) for o in graph(workspace, component).opset_import if o.domain == ""] == [
        ("", OPSET)
    ]
    assert str(Path.cwd()).encode() not in path.read_bytes()
    assert b"site-packages" not in path.read_bytes()


def test_export_is_deterministic(copied_workspace: Path):
    folder = copied_workspace / "artifacts" / "graph" / "denoise"
    before = [(folder / name).read_bytes() for name in (MODEL, WEIGHTS)]
    run_stage(copied_workspace, "export.graph", "denoise")
    assert [(folder / name).read_bytes() for name in (MODEL, WEIGHTS)] == before
