"""Stage `export`: a component in PyTorch to one ONNX graph in bf16, strongly typed.

One trace serves every recipe and every engine: quantization edits this graph (quantize.py), and the
CPU's twin is the same graph read in fp32 (twins.py). So the trace keeps what later stages rely on: a
matrix product has its weight as second input, stored [in, out] under the name of its layer. All names but
the ports' begin with the component's: an engine may be built from two components, whose names must not
meet, and an engine's own report names these nodes.
"""

import logging
import warnings

import onnx
import onnx_ir
import torch
from torch import Tensor, nn

from export.artifacts import MODEL, WEIGHTS, graph_folder
from export.checkpoint.canonical import read_description
from export.component import build_component, component_signatures
from export.params import load_params
from export.stage import progress, run_stage
from pi05_runtime.errors import EngineError
from pi05_runtime.geometry import Port, Signature
from pi05_runtime.staging import staged

OPSET = 22
"""The newest whose RMS norms are still written out; 23 fuses them into an op of mixed types."""
DTYPES = {"float32": torch.float32, "int32": torch.int32, "activation": torch.bfloat16}
EXTERNAL_BYTES = 1024
"""Tensors above this size live in the weights file."""


class MatMul(nn.Module):
    """x @ weight + bias with weight [in, out], the layout in which quantized codes are stored."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight = nn.Parameter(linear.weight.t().contiguous(), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        y = torch.matmul(x, self.weight)
        return y if self.bias is None else y + self.bias


def transpose_linears(module: nn.Module) -> nn.Module:
    """Replaces every nn.Linear by MatMul, one at a time so that memory never holds two models."""
    linears = {name: part for name, part in module.named_modules() if isinstance(part, nn.Linear)}
    while linears:
        name, linear = linears.popitem()
        module.set_submodule(name, MatMul(linear))
    return module


def trace(component: str, module: nn.Module, ports: Signature, sizes: dict[str, int]) -> onnx_ir.Model:
    """The ONNX model of a bf16 `module`. sizes: an example value for each symbolic dimension."""
    dimensions = {name: torch.export.Dim(name, min=2, max=1 << 16) for name in sizes}
    example = tuple(_example(port, sizes) for port in ports.inputs)
    dynamic = tuple(
        {axis: dimensions[size] for axis, size in enumerate(port.shape) if isinstance(size, str)}
        for port in ports.inputs
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            transpose_linears(module),
            example,
            dynamo=True,
            opset_version=OPSET,
            optimize=True,
            input_names=[p.name for p in ports.inputs],
            output_names=[p.name for p in ports.outputs],
            dynamic_shapes=dynamic,
            verbose=False,
        )
    if program is None:
        raise EngineError("torch.onnx.export gave no program; run with TORCH_LOGS=onnx to see why")
    return _rename(program.model, component)


def main(component: str) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    params, d = load_params(), read_description()
    prompt = params.export.prompt_buckets[-1]
    sizes = {"prompt": prompt, "prefix": len(d.interface.cameras) * d.geometry.vision.tokens + prompt}
    with progress(total=4, desc=f"export {component}", unit="step") as bar:
        module = build_component(component, params)
        bar.update()
        model = trace(component, module, component_signatures()[component], sizes)
        bar.update()
        with staged(graph_folder(component)) as out:
            onnx_ir.save(model, out / MODEL, external_data=WEIGHTS, size_threshold_bytes=EXTERNAL_BYTES)
            bar.update()
            onnx.checker.check_model(out / MODEL, full_check=True)
            bar.update()
    print(f"export {component}: {len(list(model.graph))} nodes, opset {OPSET}")


def _example(port: Port, sizes: dict[str, int]) -> Tensor:
    shape = [sizes[s] if isinstance(s, str) else s for s in port.shape]
    return torch.ones(shape, dtype=DTYPES[port.dtype])


def _rename(model: onnx_ir.Model, component: str) -> onnx_ir.Model:
    """Puts `component.` before every name but the ports', and calls the product of a layer
    `<component>.<layer>.MatMul`. Drops stack traces and paths, so that the same weights give the same bytes
    on any machine."""
    graph = model.graph
    weights = {name: value for name, value in graph.initializers.items() if name.endswith(".weight")}
    layers = {id(value): name.removesuffix(".weight") for name, value in weights.items()}
    for value in list(graph.initializers.values()):
        value.name = f"{component}.{value.name}"
    model.metadata_props.clear()
    graph.metadata_props.clear()
    for i, node in enumerate(graph):
        node.metadata_props.clear()
        node.doc_string = None
        layer = layers.get(id(node.inputs[1])) if node.op_type == "MatMul" else None
        node.name = f"{component}.{node.op_type}_{i}" if layer is None else f"{component}.{layer}.MatMul"
        for value in node.outputs:
            if not value.is_graph_output():
                value.name = f"{component}.{value.name}"
    return model


if __name__ == "__main__":
    run_stage(main)
