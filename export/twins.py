"""ONNX surgery: quantized layers into a traced graph, its two twins, and the weights both share.

The bf16 twin is what TensorRT parses. ONNX Runtime has no bf16 arithmetic on CPUs, so its twin is
the same graph with every bf16 read as fp32. Both point into one weights file: the codes and scales
that are judged on a CPU are the very bytes that a Thor's engine is built from.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import torch
from onnx import TensorProto, external_data_helper, helper, numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.logger import G_LOGGER
from torch import Tensor

from export import nvfp4
from export.graph import EXTERNAL_BYTES
from export.recipes import INT4_BLOCK, QuantizedLinear
from pi05_runtime.errors import EngineError

G_LOGGER.severity = G_LOGGER.ERROR  # it warns of every type that numpy lacks

ALIGNMENT = 4096
"""A page, so that a runtime can map a tensor where it lies."""


class WeightsFile:
    """Writes tensors one behind the other and hands out ONNX references to them."""

    def __init__(self, path: Path):
        self._path = path
        self._file = path.open("wb")
        self._names: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __enter__(self) -> "WeightsFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, name: str, data_type: int, dims: tuple[int, ...], data: bytes) -> TensorProto:
        """A tensor whose bytes are `data`: inside the graph if small, else in the file."""
        self._names.add(name)
        tensor = TensorProto(name=name, data_type=data_type, dims=dims, raw_data=data)
        if len(data) <= EXTERNAL_BYTES:
            return tensor
        self._file.write(b"\0" * (-self._file.tell() % ALIGNMENT))
        offset = self._file.tell()
        self._file.write(data)
        external_data_helper.set_external_data(tensor, self._path.name, offset, len(data))
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        return tensor


def quantize_graph(
    source: Path, layers: Iterable[tuple[str, QuantizedLinear]], weights: WeightsFile
) -> onnx.ModelProto:
    """The bf16 graph at `source` with `layers`, by the names of their products, quantized; all of its
    weights go to `weights`. It is still neutral: nvfp4's operators stand for what each twin writes out.

    Errors: EngineError for a layer whose product is not in the graph: nothing is skipped.
    """
    model = onnx.load(source, load_external_data=False)
    graph = gs.import_onnx(model)
    products = {n.name: n for n in graph.nodes if n.op == "MatMul"}
    for layer, quantized in layers:
        product = products.get(f"{layer}.MatMul")
        if product is None:
            raise EngineError(
                f"{source}: {layer}.MatMul, the product of a layer, is missing; run `dvc repro` again"
            )
        _insert(graph, product, layer, quantized, weights)
    graph.cleanup().toposort()
    model = gs.export_onnx(graph)
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL and tensor.name not in weights:
            data = _read_external(tensor, source.parent)
            tensor.CopyFrom(weights.add(tensor.name, tensor.data_type, tuple(tensor.dims), data))
    return model


def fp32_twin(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with every bf16 read as fp32: casts, ports and small tensors are retyped, large
    tensors stay the same bytes behind a cast."""
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    del twin.graph.value_info[:]
    for port in [*twin.graph.input, *twin.graph.output]:
        if port.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            port.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in twin.graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
    casts: list[onnx.NodeProto] = []
    renamed: dict[str, str] = {}
    for tensor in twin.graph.initializer:
        if tensor.data_type != TensorProto.BFLOAT16:
            continue
        if tensor.data_location == TensorProto.EXTERNAL:
            renamed[tensor.name] = f"{tensor.name}.fp32"
            casts.append(
                helper.make_node(
                    "Cast",
                    [tensor.name],
                    [renamed[tensor.name]],
                    f"{tensor.name}.cast",
                    to=TensorProto.FLOAT,
                )
            )
        else:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for node in twin.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    nodes = [*casts, *twin.graph.node]
    del twin.graph.node[:]
    twin.graph.node.extend(nodes)
    nvfp4.define_for_cpu(twin)
    return twin


def _insert(
    graph: gs.Graph, product: gs.Node, layer: str, quantized: QuantizedLinear, weights: WeightsFile
) -> None:
    """Rounds the product's input and restores its weight from codes, which go to `weights`."""

    def add(
        op: str, name: str, inputs: list[gs.Tensor], attributes: Mapping[str, int], domain: str = ""
    ) -> gs.Variable:
        output = gs.Variable(f"{layer}.{name}")
        node = gs.Node(op, f"{layer}.{name}.{op}", dict(attributes), inputs, [output], domain)
        graph.nodes.append(node)  # type: ignore[attr-defined]
        return output

    def stored(name: str, data_type: int, dims: tuple[int, ...], data: bytes) -> gs.Constant:
        tensor = weights.add(f"{layer}.{name}", data_type, dims, data)
        return gs.Constant(tensor.name, LazyValues(tensor))

    x = product.inputs[0]
    inputs, out = quantized.shape
    codes = stored("codes", quantized.data_type, quantized.shape, quantized.codes)
    scale = _constant(f"{layer}.weight_scale", quantized.weight_scale)
    if quantized.block_scales is not None:
        dims = (inputs // nvfp4.BLOCK, out)
        blocks = stored("block_scales", TensorProto.FLOAT8E4M3FN, dims, quantized.block_scales)
        product.inputs[1] = add(nvfp4.RESTORE, "weight", [codes, blocks, scale], {}, nvfp4.DOMAIN)
    else:
        granularity: dict[str, int] = [{}, {"axis": 1}, {"axis": 0, "block_size": INT4_BLOCK}][
            quantized.weight_scale.ndim
        ]
        product.inputs[1] = add("DequantizeLinear", "weight", [codes, scale], granularity)
    if quantized.input_scale is None:
        return
    scale = _constant(f"{layer}.input_scale", quantized.input_scale)
    if quantized.block_scales is not None:
        product.inputs[0] = add(nvfp4.ROUND, "input_restored", [x, scale], {}, nvfp4.DOMAIN)
    else:
        zero = TensorProto(name=f"{layer}.input_zero", data_type=quantized.data_type, raw_data=b"\0")
        zero = gs.Constant(zero.name, LazyValues(zero))
        saturate = {"saturate": 1} if quantized.data_type == TensorProto.FLOAT8E4M3FN else {}
        x = add("QuantizeLinear", "input_codes", [x, scale, zero], saturate)
        product.inputs[0] = add("DequantizeLinear", "input_restored", [x, scale, zero], {})


def _constant(name: str, values: Tensor) -> gs.Constant:
    """A bf16 constant kept inside the graph, where the fp32 twin can retype it."""
    data = values.view(torch.int16).numpy().astype("<i2").tobytes()
    tensor = TensorProto(name=name, data_type=TensorProto.BFLOAT16, dims=values.shape, raw_data=data)
    return gs.Constant(name, LazyValues(tensor))


def _read_external(tensor: TensorProto, folder: Path) -> bytes:
    entry = external_data_helper.ExternalDataInfo(tensor)
    with (folder / entry.location).open("rb") as file:
        file.seek(entry.offset or 0)
        return file.read(entry.length)
