"""Stage `quantize`: a component's recipe applied; two ONNX twins and a table of every layer.

Writes bf16.onnx (for TensorRT), fp32.onnx (for ONNX Runtime on CPUs) and weights.bin, which both
read, and says of every linear layer what became of it, so that no wildcard can skip a tower unseen.
"""

import fnmatch
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec
import onnx
import torch
from torch import nn

from export.calibrate import FOLDER as CALIBRATION
from export.calibrate import CalibrationSet, build_component, component_inputs
from export.graph import MODEL, WEIGHTS
from export.graph import folder as graph_folder
from export.params import ComponentParams, load_params
from export.recipes import QuantizedLinear, calibrate, encode
from export.stage import ARTIFACTS, progress, run_stage, staged
from export.twins import WeightsFile, fp32_twin, quantize_graph
from pi05_runtime.errors import ParamsError

TWINS = ("bf16", "fp32")


class Layer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A linear layer: its weight [out, in], what it is held in, and why. input_scale: None unless its
    activations are quantized too."""

    name: str
    shape: tuple[int, int]
    precision: str
    reason: Literal["recipe", "keep", "fp32 in openpi"]
    input_scale: float | None = None


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """table.json. quantized: the share of linear weights that are held in the recipe's format."""

    component: str
    recipe: str
    calibration_sha256: str | None
    quantized: float
    layers: tuple[Layer, ...]

    def markdown(self) -> str:
        """The table as people read it."""
        lines = [
            f"# {self.component}: {self.recipe}, {self.quantized:.1%} of linear weights quantized",
            "",
            "| layer | out | in | precision | why | activation scale |",
            "|---|---|---|---|---|---|",
        ]
        for row in self.layers:
            scale = "" if row.input_scale is None else f"{row.input_scale:.3g}"
            lines.append(
                f"| {row.name} | {row.shape[0]} | {row.shape[1]} | {row.precision} | {row.reason} | {scale} |"
            )
        return "\n".join(lines) + "\n"


def folder(component: str) -> Path:
    return ARTIFACTS / "quantized" / component


def read_table(component: str) -> Table:
    return msgspec.json.decode((folder(component) / "table.json").read_bytes(), type=Table)


def choose_layers(module: nn.Module, params: ComponentParams) -> tuple[list[str], list[str]]:
    """(layers to quantize, layers kept by name) among the bf16 linears of a component.

    Errors: ParamsError for a `keep` pattern that matches nothing.
    """
    names = [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and layer.weight.dtype == torch.bfloat16
    ]
    for pattern in params.keep:
        if not fnmatch.filter(names, pattern):
            raise ParamsError(f"keep: {pattern!r} matches no layer; the layers are {', '.join(names)}")
    kept = [n for n in names if any(fnmatch.fnmatch(n, pattern) for pattern in params.keep)]
    if params.recipe != "bf16" and len(kept) == len(names):
        raise ParamsError(f"keep: {params.keep} leaves nothing to quantize; set the recipe to bf16 instead")
    return [n for n in names if n not in kept], kept


def tabulate(
    component: str, recipe: str, module: nn.Module, kept: list[str], scales: dict[str, float | None]
) -> Table:
    """The table of every linear of `module`; scales: activation scale of each quantized layer."""
    rows: list[Layer] = []
    for name, layer in module.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        shape = (layer.out_features, layer.in_features)
        if name in scales:
            rows.append(Layer(name, shape, recipe, "recipe", scales[name]))
        elif layer.weight.dtype == torch.float32:
            rows.append(Layer(name, shape, "fp32", "fp32 in openpi"))
        else:
            rows.append(Layer(name, shape, "bf16", "keep" if name in kept else "recipe"))
    sizes = {row.name: row.shape[0] * row.shape[1] for row in rows}
    share = sum(sizes[name] for name in scales) / sum(sizes.values())
    return Table(component, recipe, _calibration_hash() if scales else None, round(share, 6), tuple(rows))


def main(component: str) -> None:
    params = load_params()
    recipe = params.components[component].recipe
    module = build_component(component, params)
    layers, kept = choose_layers(module, params.components[component])
    if recipe == "bf16":
        layers = []
    else:
        inputs = list(component_inputs(component))
        with progress(inputs, desc=f"quantize {component} calibration", unit="sample") as bar:
            module = calibrate(module, layers, recipe, lambda: iter(bar))
    scales: dict[str, float | None] = {}

    def encoded() -> Iterator[tuple[str, QuantizedLinear]]:
        for name in progress(layers, desc=f"quantize {component} weights", unit="layer"):
            layer = encode(module.get_submodule(name), name, recipe)
            scales[name] = None if layer.input_scale is None else layer.input_scale.item()
            yield name, layer

    with staged(folder(component)) as out:
        with WeightsFile(out / WEIGHTS) as weights:
            model = quantize_graph(graph_folder(component) / MODEL, encoded(), weights)
        for twin, graph in zip(TWINS, (model, fp32_twin(model)), strict=True):
            onnx.save(graph, out / f"{twin}.onnx")
            onnx.checker.check_model(out / f"{twin}.onnx", full_check=True)
        table = tabulate(component, recipe, module, kept, scales)
        (out / "table.json").write_bytes(msgspec.json.format(msgspec.json.encode(table)))
        (out / "table.md").write_text(table.markdown())
    print(f"quantize {component}: {recipe}, {table.quantized:.1%} of linear weights quantized")


def _calibration_hash() -> str:
    return msgspec.json.decode((CALIBRATION / "set.json").read_bytes(), type=CalibrationSet).sha256


if __name__ == "__main__":
    run_stage(main)
