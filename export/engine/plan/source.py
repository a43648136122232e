"""A quantized component's tensors as kernels want them, from the very file that every engine is built from.

Kernels read [out, in], the ONNX holds [in, out]; and some kernels want columns interleaved, so that what
meets in an epilogue meets in one thread.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, external_data_helper
from torch import Tensor

from export.artifacts import quantized_folder
from export.kernels.epilogue import PAIRED
from pi05_runtime.errors import EngineError

DTYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
}


@dataclass(frozen=True)
class Linear:
    """weight [out, in], FP8 codes, bf16 or fp32. scale: of the codes, 1 without. input_scale: of the
    activations' codes, None without."""

    weight: Tensor
    scale: float
    input_scale: float | None

    @property
    def fp8(self) -> bool:
        return self.input_scale is not None

    def grown(self, size: tuple[int, int] | None) -> "Linear":
        """With outputs and inputs of zeros, up to `size`: what they give and take is nothing."""
        if size is None or size == tuple(self.weight.shape):
            return self
        weight = self.weight.new_zeros(size)
        weight[: self.weight.shape[0], : self.weight.shape[1]] = self.weight
        return replace(self, weight=weight)


class Source:
    """The tensors of bf16.onnx, by name and without the component's prefix."""

    def __init__(self, component: str, recipe: str) -> None:
        self._component = component
        self._path = quantized_folder(component, recipe) / "bf16.onnx"
        graph = onnx.load(self._path, load_external_data=False).graph
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}

    def __contains__(self, name: str) -> bool:
        return f"{self._component}.{name}" in self._tensors

    def tensor(self, name: str) -> Tensor:
        """Errors: EngineError for one that is missing or of a type that no kernel reads."""
        full = f"{self._component}.{name}"
        if full not in self._tensors:
            raise EngineError(f"{self._path}: no tensor {full} found; run `dvc repro` again")
        tensor = self._tensors[full]
        if tensor.data_type not in DTYPES:
            kind = onnx.helper.tensor_dtype_to_string(tensor.data_type)
            raise EngineError(
                f"{full}: {kind} found, {[str(d) for d in DTYPES.values()]} expected: choose a recipe "
                "that kernel plans have"
            )
        data = bytearray(_bytes(tensor, self._path.parent))
        return torch.frombuffer(data, dtype=DTYPES[tensor.data_type]).reshape(tuple(tensor.dims))

    def linear(self, name: str) -> Linear:
        """Errors: EngineError for a layer in a format that no kernel reads."""
        if f"{name}.codes" not in self:
            return Linear(self.tensor(f"{name}.weight").t(), 1.0, None)
        weight, scale = self.tensor(f"{name}.codes").t(), self.tensor(f"{name}.weight_scale")
        if scale.numel() != 1 or f"{name}.input_scale" not in self:
            raise EngineError(
                f"{name}: scales of shape {list(scale.shape)} found, one a tensor expected: choose fp8"
            )
        return Linear(weight, scale.item(), self.tensor(f"{name}.input_scale").item())


def interleave_heads(weight: Tensor, head_dim: int) -> Tensor:
    """Of a [heads * head_dim, in] matrix, each head as `interleave_pair` has it."""
    return torch.cat([interleave_pair(head) for head in weight.split(head_dim)])


def interleave_pair(weight: Tensor) -> Tensor:
    """Of a [2 * n, in] matrix, PAIRED of the first n outputs, as many of the others, and so on."""
    return weight.unflatten(0, (2, -1, PAIRED.value)).transpose(0, 1).flatten(0, 2)


def _bytes(tensor: TensorProto, folder: Path) -> bytes:
    if tensor.data_location != TensorProto.EXTERNAL:
        return tensor.raw_data
    entry = external_data_helper.ExternalDataInfo(tensor)
    with (folder / entry.location).open("rb") as file:
        file.seek(entry.offset or 0)
        return file.read(entry.length)
