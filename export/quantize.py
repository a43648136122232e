"""Stage `quantize`: a component's recipe applied; two ONNX twins and a table of every layer.

Writes bf16.onnx (for TensorRT), fp32.onnx (for ONNX Runtime on CPUs) and weights.bin, which both
read, and says of every linear layer what became of it, so that no wildcard can skip a tower unseen.
"""

import fnmatch
from collections.abc import Iterator

import onnx
import torch
from torch import nn

from export.artifacts import MODEL, TABLE, TWINS, WEIGHTS, graph_folder, quantized_folder, write_json
from export.component import build_component, component_inputs, read_calibration_set
from export.params import ComponentParams, load_params
from export.recipes import QuantizedLinear, calibrate, encode
from export.stage import progress, run_stage, staged
from export.table import Layer, Table
from export.twins import WeightsFile, fp32_twin, quantize_graph
from pi05_runtime.errors import ParamsError


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
    component: str,
    params: ComponentParams,
    module: nn.Module,
    kept: list[str],
    scales: dict[str, float | None],
) -> Table:
    """The table of every linear of `module`; scales: activation scale of each quantized layer."""
    rows: list[Layer] = []
    for name, layer in module.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        shape = (layer.out_features, layer.in_features)
        if name in scales:
            rows.append(Layer(name, shape, params.recipe, "recipe", scales[name]))
        elif layer.weight.dtype == torch.float32:
            rows.append(Layer(name, shape, "fp32", "fp32 in openpi"))
        else:
            rows.append(Layer(name, shape, "bf16", "keep" if name in kept else "recipe"))
    sizes = {row.name: row.shape[0] * row.shape[1] for row in rows}
    share = round(sum(sizes[name] for name in scales) / sum(sizes.values()), 6)
    calibration = read_calibration_set().sha256 if scales else None
    return Table(component, params.recipe, params.keep, calibration, share, tuple(rows))


def main(component: str) -> None:
    everything = load_params()
    params = everything.components[component]
    module = build_component(component, everything)
    layers, kept = choose_layers(module, params)
    if params.recipe == "bf16":
        layers = []
    else:
        inputs = list(component_inputs(component))
        with progress(inputs, desc=f"quantize {component} calibration", unit="sample") as bar:
            module = calibrate(module, layers, params.recipe, lambda: iter(bar))
    scales: dict[str, float | None] = {}

    def encoded() -> Iterator[tuple[str, QuantizedLinear]]:
        for name in progress(layers, desc=f"quantize {component} weights", unit="layer"):
            layer = encode(module.get_submodule(name), name, params.recipe)
            scales[name] = None if layer.input_scale is None else layer.input_scale.item()
            yield name, layer

    with staged(quantized_folder(component)) as out:
        with WeightsFile(out / WEIGHTS) as weights:
            model = quantize_graph(graph_folder(component) / MODEL, encoded(), weights)
        for twin, graph in zip(TWINS, (model, fp32_twin(model)), strict=True):
            onnx.save(graph, out / f"{twin}.onnx")
            onnx.checker.check_model(out / f"{twin}.onnx", full_check=True)
        table = tabulate(component, params, module, kept, scales)
        write_json(out / TABLE, table)
        (out / "table.md").write_text(table.markdown())
    print(f"quantize {component}: {params.recipe}, {table.quantized:.1%} of linear weights quantized")


if __name__ == "__main__":
    run_stage(main)
