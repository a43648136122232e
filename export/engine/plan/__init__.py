"""<chip>-plan: a component as a list of kernel launches, compiled ahead of time on any machine.

The pipeline's own quantized ONNX gives weights and scales (source.py); a component says its launches
(components.py); every variant is compiled for the chip and read (compile.py); what is good goes into one file
with the weights, and what became of every variant into a report beside it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from safetensors.torch import save_file
from torch import Tensor

from export.artifacts import write_json
from export.checkpoint.canonical import read_description
from export.component import component_signatures
from export.engine import EngineRecord
from export.engine.plan import components
from export.engine.plan.builder import Builder, Call, padded
from export.engine.plan.report import tabulate
from export.engine.plan.source import Source
from export.engine.plan.tiles import power_of_two
from export.kernels import resize
from export.kernels.compile import Binary, Chip, Refused, Specialization, compile_kernels
from export.params import Params
from pi05_runtime.errors import EngineError
from pi05_runtime.geometry import fixed_shape
from pi05_runtime.lock import Lock
from pi05_runtime.plan import METADATA, Kernel, Launch, Plan, Shaped, Staging, Variant
from pi05_runtime.targets import find_target
from pi05_runtime.verify import hash_file

PRODUCTS = ("matmul", "persistent", "skinny", "tall")
"""Kernels that multiply by a layer's weight, their argument `w`."""


def build(target: str, component: str, lock: Lock, params: Params, out: Path) -> EngineRecord:
    """Writes <component>.plan, kernels.json and kernels.md. Errors: EngineError for a launch without a
    variant that is good on the chip, or a format that no kernel reads."""
    recipe = params.recipes(target, component)[0]
    capability = find_target(target).compute_capability or ""
    chip = Chip.of(capability)
    described = describe(chip, component, Source(component, recipe), params.export.prompt_buckets)
    compiled = compile_kernels(chip, kernels_of(component, described))
    calls = [call for one in described for call in one.builder.calls]
    report = tabulate(f"{target} {component}, {recipe}", calls, compiled)
    write_json(out / "kernels.json", report)
    (out / "kernels.md").write_text(report.markdown())
    path = out / f"{component}.plan"
    write(path, component, capability, described, compiled)
    layers = Counter(precision for call in described[0].builder.calls if (precision := _precision(call)))
    sha256 = hash_file(path).sha256
    return EngineRecord(path.name, sha256, "engine", {component: recipe}, (), lock, layers=dict(layers))


@dataclass(frozen=True)
class Described:
    """A component at one set of shapes."""

    shapes: dict[str, tuple[int, ...]]
    builder: Builder


def describe(chip: Chip, component: str, source: Source, buckets: Sequence[int]) -> list[Described]:
    """The launches at every prompt bucket; vision knows none. All share their weights."""
    d = read_description()
    g, views = d.geometry, len(d.interface.cameras)
    tokens = views * g.vision.tokens
    signature = component_signatures()[component]
    weights: dict[str, Tensor] = {}
    described: list[Described] = []
    for prompt in (0,) if component == "vision" else buckets:
        builder = Builder(weights, chip)
        match component:
            case "vision":
                components.vision(builder, source, g, views)
            case "prefill":
                components.prefill(builder, source, g, tokens, prompt)
            case _:
                components.denoise(builder, source, g, d.interface.horizon, tokens + prompt)
        ports = (*signature.inputs, *signature.outputs)
        described.append(Described({port.name: fixed_shape(port, prompt, tokens) for port in ports}, builder))
    return described


def kernels_of(component: str, described: Sequence[Described]) -> list[Specialization]:
    """All that a component may need compiled, each once."""
    calls = [call for one in described for call in one.builder.calls]
    staging = [stage_frames()] if component == "vision" else []
    return list(dict.fromkeys([*(v.wanted for call in calls for v in call.variants), *staging]))


def stage_frames() -> Specialization:
    """The kernel that brings camera frames into the policy's square."""
    d = read_description()
    size, rounded = d.geometry.vision.image_size, d.interface.image_convention == "openpi"
    weights = "*i32" if rounded else "*fp32"
    kinds = {"frame": "*u8", "out": "*fp32", "column_starts": "*i32", "row_starts": "*i32"}
    kinds |= {"column_weights": weights, "row_weights": weights}
    constants = {"SIZE": size, "BLOCK": power_of_two(size), "ROUNDED": int(rounded)}
    names: list[str] = resize.resize.arg_names
    signature = tuple((n, "constexpr" if n in constants else kinds.get(n, "i32")) for n in names)
    return Specialization("resize", signature, tuple(constants.items()), warps=4, stages=1)


def write(
    path: Path,
    component: str,
    capability: str,
    described: Sequence[Described],
    compiled: Mapping[Specialization, Binary | Refused],
) -> None:
    """The plan's file. Errors: EngineError for a launch that no variant is good for."""
    kernels: list[Kernel] = []
    places: dict[Specialization, int] = {}
    tensors = dict(described[0].builder.weights)
    for wanted, binary in compiled.items():
        if isinstance(binary, Refused):
            continue
        image = f"kernel.{len(kernels)}"
        places[wanted] = len(kernels)
        kernels.append(Kernel(image, binary.entry, binary.shared, binary.threads))
        tensors[image] = padded(torch.frombuffer(bytearray(binary.code), dtype=torch.uint8))
    shaped: list[Shaped] = []
    for one in described:
        arguments, arena = one.builder.arguments()
        launches = [
            Launch(call.name, _variants(call, places, compiled), given)
            for call, given in zip(one.builder.calls, arguments, strict=True)
        ]
        shaped.append(Shaped(one.shapes, tuple(launches), arena))
    staging = None
    if component == "vision":
        d, wanted = read_description(), stage_frames()
        if isinstance(refused := compiled[wanted], Refused):
            raise EngineError(f"staging of frames: {refused.reason}; report it")
        size = d.geometry.vision.image_size
        staging = Staging(places[wanted], size, d.interface.image_convention)
    plan = Plan(component, capability, tuple(kernels), tuple(shaped), staging)
    save_file(tensors, path, {METADATA: msgspec.json.encode(plan).decode()})


def _variants(
    call: Call, places: Mapping[Specialization, int], compiled: Mapping[Specialization, Binary | Refused]
) -> tuple[Variant, ...]:
    good = [v for v in call.variants if v.wanted in places]
    found = tuple(Variant(places[v.wanted], v.grid, v.tiled) for v in good)
    if not found:
        reasons = [r.reason for v in call.variants if isinstance(r := compiled[v.wanted], Refused)]
        raise EngineError(
            f"{call.name}: no variant of {len(reasons)} is good on this chip: {'; '.join(reasons)}; add "
            "tiles to export/engine/plan/tiles.py"
        )
    return found


def _precision(call: Call) -> str | None:
    """What a launch multiplies a layer's weight in, None for one that does not."""
    wanted = call.variants[0].wanted
    if wanted.kernel not in PRODUCTS:
        return None
    kinds = dict(wanted.signature)
    if wanted.kernel != "skinny" and kinds["out"] == "*fp32":
        # Its weights are thirds (products.py), whose sums alone stay so: fp32 but for its last 8 bits.
        return "fp32"
    return {"*fp8e4nv": "fp8", "*bf16": "bf16", "*fp32": "fp32"}[kinds["w"]]
