"""Tiny components for the builder's tests: two linears each, in any recipe, in a component's ONNX layout."""

import re
from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper

from pi05_runtime.build.contract import BuildOptions, Part, Request
from pi05_runtime.geometry import PREFIX, Port, Signature
from pi05_runtime.layer_table import Layer, Table

WIDTH, TOKENS = 256, 8
_IMAGES = Port("images", "float32", (TOKENS, WIDTH))
_TOKENS = Port("image_tokens", "activation", (TOKENS, WIDTH))
_PROMPT = Port("prompt_embeddings", "activation", ("prompt", WIDTH))
_KEYS = Port("keys", "activation", ("prefix", WIDTH))
SIGNATURES = {
    "vision": Signature((_IMAGES,), (_TOKENS,)),
    "prefill": Signature((_TOKENS, _PROMPT), (_KEYS,)),
    PREFIX: Signature((_IMAGES, _PROMPT), (_KEYS,)),
}
_TYPES = {"float32": TensorProto.FLOAT, "activation": TensorProto.BFLOAT16}
_CODES = {"fp8": TensorProto.FLOAT8E4M3FN, "int8": TensorProto.INT8}


def write_component(
    folder: Path, component: str, built: str, planned: str | None = None, restored: str = "input weight"
) -> Path:
    """A component's ONNX folder. built: what the graph holds, planned: what its table says, if another.
    restored: which operands of an fp8 product go through Q/DQ."""
    folder.mkdir(parents=True)
    nodes: list[onnx.NodeProto] = []
    tensors: list[TensorProto] = []
    ports = SIGNATURES[component]
    if component == "vision":
        nodes.append(helper.make_node("Cast", ["images"], ["vision.x"], "vision.Cast_0", to=16))
    else:
        names = [port.name for port in ports.inputs]
        nodes.append(helper.make_node("Concat", names, ["prefill.x"], "prefill.Concat_0", axis=0))
    _linear(component, "a", "x", "h", built, restored, nodes, tensors)
    gelu = helper.make_node("Gelu", [f"{component}.h"], [f"{component}.g"], f"{component}.Gelu_1")
    nodes.append(gelu)
    _linear(component, "b", "g", "y", built, restored, nodes, tensors)
    nodes[-1].output[0] = ports.outputs[0].name
    graph = helper.make_graph(nodes, component, *map(_values, (ports.inputs, ports.outputs)), tensors)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("trt", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    onnx.save(
        model, folder / "bf16.onnx", save_as_external_data=True, location="weights.bin", size_threshold=1024
    )
    plan = planned or built
    layers = tuple(Layer(name, (WIDTH, WIDTH), plan, "recipe") for name in ("a", "b"))
    table = Table(component, plan, (), None, 0.0, layers)
    (folder / "table.json").write_bytes(msgspec.json.encode(table))
    return folder


def request(folder: Path, out: Path, **changes: Any) -> Request:
    """One attempt at the component in `folder`, for TensorRT for RTX unless `changes` say otherwise."""
    table = msgspec.json.decode((folder / "table.json").read_bytes(), type=Table)
    values: dict[str, Any] = {
        "library": "tensorrt_rtx",
        "compute_capability": "12.0",
        "name": table.component,
        "parts": (Part(table.component, str(folder / "bf16.onnx"), table),),
        "signature": SIGNATURES[table.component],
        "profiles": (),
        "optimization_level": 3,
        "options": BuildOptions(minutes=1, workspace_gib=1),
        "out": str(out),
    }
    return Request(**values | changes)


def is_the_same_anywhere(outcome: str) -> bool:
    """Whether a manifest that is the same on every machine may hold it: one line, and in it no absolute
    path, no address and no measured duration."""
    return "\n" not in outcome and not re.search(r"(?<!\w)/\w|0x[0-9a-f]|\d ?(s|ms|us|seconds)\b", outcome)


def _values(ports: tuple[Port, ...]) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(p.name, _TYPES[p.dtype], p.shape) for p in ports]


def _linear(
    component: str,
    layer: str,
    x: str,
    y: str,
    built: str,
    restored: str,
    nodes: list[onnx.NodeProto],
    tensors: list[TensorProto],
) -> None:
    """Adds `y = x @ weight` and the Q/DQ of its recipe."""
    prefix = f"{component}.{layer}"
    weight = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(np.float32)

    def name(part: str) -> str:
        return f"{prefix}.{part}"

    def hold(part: str, data_type: int, shape: tuple[int, ...], data: bytes) -> str:
        tensors.append(TensorProto(name=name(part), data_type=data_type, dims=shape, raw_data=data))
        return name(part)

    def bf16(part: str, values: np.ndarray) -> str:
        data = values.astype(ml_dtypes.bfloat16).tobytes()
        return hold(part, TensorProto.BFLOAT16, values.shape, data)

    def add(op: str, part: str, inputs: list[str], outputs: list[str], **attributes: object) -> None:
        nodes.append(helper.make_node(op, inputs, list(map(name, outputs)), name(part), **attributes))

    source = f"{component}.{x}"
    if built in _CODES and "input" in restored:
        scale = [bf16("input_scale", np.float32(0.01).reshape(()))]
        scale.append(hold("input_zero", _CODES[built], (), b"\0"))
        add("QuantizeLinear", "input_codes.QuantizeLinear", [source, *scale], ["input_codes"])
        codes = [name("input_codes"), *scale]
        add("DequantizeLinear", "input_restored.DequantizeLinear", codes, ["input_restored"])
        source = name("input_restored")
    elif built == "nvfp4":
        scale = bf16("input_scale", np.float32(0.01).reshape(()))
        quantize = {"domain": "trt", "axis": -1, "block_size": 16, "scale_type": 17}
        add("TRT_FP4DynamicQuantize", "quantize", [source, scale], ["codes_x", "scales_x"], **quantize)
        add("DequantizeLinear", "scales_x.DequantizeLinear", [name("scales_x"), scale], ["scales_bf16"])
        codes = [name("codes_x"), name("scales_bf16")]
        blocks = {"axis": -1, "block_size": 16}
        add("DequantizeLinear", "input_restored.DequantizeLinear", codes, ["input_restored"], **blocks)
        source = name("input_restored")

    if built == "bf16" or (built == "fp8" and "weight" not in restored):
        bf16("weight", weight)
    elif built == "nvfp4":
        packed = hold("codes", TensorProto.FLOAT4E2M1, weight.shape, bytes(range(256)) * (weight.size // 512))
        ones = np.ones((WIDTH // 16, WIDTH), ml_dtypes.float8_e4m3fn)
        scales = hold("scales", TensorProto.FLOAT8E4M3FN, ones.shape, ones.tobytes())
        largest = bf16("scale", np.float32(0.1).reshape(()))
        add("DequantizeLinear", "weight_scale.DequantizeLinear", [scales, largest], ["weight_scale"])
        blocks = {"axis": 0, "block_size": 16}
        add(
            "DequantizeLinear",
            "weight.DequantizeLinear",
            [packed, name("weight_scale")],
            ["weight"],
            **blocks,
        )
    elif built == "int4":
        packed = hold("codes", TensorProto.INT4, weight.shape, bytes(range(256)) * (weight.size // 512))
        scale = bf16("weight_scale", np.full((WIDTH // 128, WIDTH), 0.5))
        blocks = {"axis": 0, "block_size": 128}
        add("DequantizeLinear", "weight.DequantizeLinear", [packed, scale], ["weight"], **blocks)
    else:
        if built == "fp8":
            data = (weight * 2).astype(ml_dtypes.float8_e4m3fn).tobytes()
            scale, axis = bf16("weight_scale", np.float32(0.5).reshape(())), {}
        else:
            data = (weight * 30).round().clip(-127, 127).astype(np.int8).tobytes()
            scale, axis = bf16("weight_scale", np.full(WIDTH, 0.03)), {"axis": 1}
        codes = hold("codes", _CODES[built], weight.shape, data)
        add("DequantizeLinear", "weight.DequantizeLinear", [codes, scale], ["weight"], **axis)
    add("MatMul", "MatMul", [source, name("weight")], [])
    nodes[-1].output.append(f"{component}.{y}")
