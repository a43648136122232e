"""Engine layers from the lines in which TensorRT describes them.

EngineInspector gives such lines on the machine that can load the engine; the builder's own verbose log
holds the same lines on one that cannot. TensorRT 10 lists weights among the inputs and says
`Format/Datatype`; TensorRT for RTX has a list of constants and says `Datatype`. Both are read here.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from pi05_runtime.errors import EngineError

_LAYER = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>[^,]+), Inputs: \[(?P<inputs>.*?)\], "
    r"(?:Constants: \[(?P<constants>.*?)\], )?Outputs: \[(?P<outputs>| .*?\})\](?P<rest>.*)"
)
_TENSOR = re.compile(
    r"\{ Name: (?P<name>[^{}]+?), (?:Location: \w+, )?Dimensions: \[(?P<shape>[-\d,]*)\]"
    r"[^{}]*?Datatype: (?P<dtype>[^,{}]+)"
)
_TACTIC = re.compile(r"Tactic(?:Name|Value): ([^,]*)")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_PRECISIONS = {
    "bf16": r"bfloat16|bf16",
    "fp8": r"fp8|float8|e4m3",
    "fp4": r"fp4|float4|e2m1",
    "int8": r"int8",
    "int4": r"int4",
    "fp16": r"fp16|half|float16",
    "fp32": r"fp32|float",
}


@dataclass(frozen=True)
class Operand:
    """A tensor that a layer reads or writes. precision: bf16, fp8, fp4, int8, int4, fp16, fp32, or what the
    library wrote where it is none of these."""

    name: str
    shape: tuple[int, ...]
    precision: str

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class EngineLayer:
    """A layer of an engine. nodes: the ONNX nodes it computes, whole or in part. line: as it was written."""

    name: str
    kind: str
    inputs: tuple[Operand, ...]
    constants: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    nodes: tuple[str, ...]
    tactic: str
    line: str

    @property
    def weight(self) -> Operand | None:
        """The largest constant; None for a layer that has none."""
        return max(self.constants, key=lambda operand: operand.size, default=None)


def is_layer(line: str) -> bool:
    """Whether a line of a log, or of an inspector's text, describes a layer."""
    return line.startswith("Name: ") and ", LayerType: " in line


def read_layers(lines: Iterable[str]) -> tuple[EngineLayer, ...]:
    """The layers that `lines` describe. Errors: EngineError with a line that cannot be read."""
    return tuple(_read_layer(line) for line in lines if is_layer(line))


def _read_layer(line: str) -> EngineLayer:
    match = _LAYER.fullmatch(line.strip())
    if match is None:
        raise EngineError(
            "an engine's layer is described in words that this release cannot read, so its precision is "
            f"unknown; report this line: {line}"
        )
    inputs, constants, outputs = (_operands(match[k] or "", line) for k in ("inputs", "constants", "outputs"))
    if match["constants"] is None:
        constants = tuple(operand for operand in inputs if "const" in operand.name)
        inputs = tuple(operand for operand in inputs if operand not in constants)
    tactic = _TACTIC.search(match["rest"])
    return EngineLayer(
        name=match["name"],
        kind=match["kind"],
        inputs=inputs,
        constants=constants,
        outputs=outputs,
        nodes=tuple(_NODE.findall(match["rest"])),
        tactic=tactic[1] if tactic else "",
        line=line.strip(),
    )


def _operands(text: str, line: str) -> tuple[Operand, ...]:
    found = tuple(
        Operand(
            match["name"],
            tuple(int(size) for size in match["shape"].split(",") if size),
            _precision(match["dtype"].strip()),
        )
        for match in _TENSOR.finditer(text)
    )
    if len(found) != text.count("{ Name: "):
        raise EngineError(
            f"{len(found)} of {text.count('{ Name: ')} tensors of an engine's layer could be read, so its "
            f"precision is unknown; report this line: {line}"
        )
    return found


def _precision(dtype: str) -> str:
    for name, spelling in _PRECISIONS.items():
        if re.search(spelling, dtype, re.IGNORECASE):
            return name
    return dtype
