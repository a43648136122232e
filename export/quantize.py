"""Stage `quantize`: a component's recipes applied; for each, two ONNX twins and a table of every layer.

Writes a folder for the wanted recipe, and one for the fallback where a builder may need it. Each holds
bf16.onnx (for TensorRT), fp32.onnx (for ONNX Runtime on CPUs) and weights.bin, which both read; the table
says of every linear layer what became of it, so that no wildcard can skip a tower unseen.
"""

import fnmatch
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from torch import nn

from export import nvfp4
from export.artifacts import ARTIFACTS, MODEL, TABLE, TWINS, WEIGHTS, graph_folder, write_json
from export.attention import use_native_attention
from export.component import build_component, component_inputs, read_calibration_set
from export.params import ComponentParams, Params, Recipe, load_params
from export.recipes import QuantizedLinear, calibrate, encode
from export.stage import progress, run_stage
from export.twins import WeightsFile, fp32_twin, quantize_graph
from pi05_runtime.errors import ParamsError
from pi05_runtime.layer_table import Layer, Table
from pi05_runtime.staging import staged


def choose_layers(module: nn.Module, params: ComponentParams) -> list[str]:
    """The layers to quantize: the bf16 linears of a component but for those that `keep` names.

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
    return [n for n in names if n not in kept]


def tabulate(
    component: str, recipe: Recipe, params: ComponentParams, module: nn.Module, quantized: dict[str, Layer]
) -> Table:
    """The table of every linear of `module`; quantized: the rows of those that are, by name."""
    rows: list[Layer] = []
    for name, layer in module.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        shape = (layer.out_features, layer.in_features)
        if name in quantized:
            rows.append(quantized[name])
        elif layer.weight.dtype == torch.float32:
            rows.append(Layer(name, shape, "fp32", "fp32 in openpi"))
        else:
            kept = any(fnmatch.fnmatch(name, pattern) for pattern in params.keep)
            rows.append(Layer(name, shape, "bf16", "keep" if kept else "recipe"))
    sizes = {row.name: row.shape[0] * row.shape[1] for row in rows}
    share = round(sum(sizes[name] for name in quantized) / sum(sizes.values()), 6)
    calibration = read_calibration_set().sha256 if quantized else None
    return Table(component, recipe, params.keep, calibration, share, tuple(rows))


def quantize(component: str, recipe: Recipe, params: Params, out: Path) -> Table:
    """Writes the twins, weights and table of one recipe to `out`."""
    chosen = params.components[component]
    module = build_component(component, params)
    layers = choose_layers(module, chosen)
    if recipe == "bf16":
        layers = []
    else:
        samples = list(component_inputs(component))
        with progress(samples, desc=f"quantize {component} {recipe} calibration", unit="sample") as bar:
            module = calibrate(module, layers, recipe, lambda: iter(bar))
    rows: dict[str, Layer] = {}

    def encoded() -> Iterator[tuple[str, QuantizedLinear]]:
        for name in progress(layers, desc=f"quantize {component} {recipe} weights", unit="layer"):
            layer = encode(module.get_submodule(name), name, recipe)
            scale = None if layer.input_scale is None else layer.input_scale.item()
            width, units = layer.shape
            rows[name] = Layer(name, (units, width), layer.precision, "recipe", scale)
            yield f"{component}.{name}", layer

    out.mkdir()
    with WeightsFile(out / WEIGHTS) as weights:
        model = quantize_graph(graph_folder(component) / MODEL, encoded(), weights)
    engine = nvfp4.expand_for_tensorrt(model)
    if params.export.attention == "native":
        engine = use_native_attention(engine)
    for twin, graph in zip(TWINS, (engine, fp32_twin(model)), strict=True):
        onnx.save(graph, out / f"{twin}.onnx")
        onnx.checker.check_model(out / f"{twin}.onnx", full_check=True)
    table = tabulate(component, recipe, chosen, module, rows)
    write_json(out / TABLE, table)
    (out / "table.md").write_text(table.markdown())
    return table


def main(component: str) -> None:
    params = load_params()
    with staged(ARTIFACTS / "quantized" / component) as out:
        for recipe in params.components[component].recipes:
            table = quantize(component, recipe, params, out / recipe)
            print(f"quantize {component}: {recipe}, {table.quantized:.1%} of linear weights quantized")


if __name__ == "__main__":
    run_stage(main)
