"""The ladder: what to try, and what to try next when a compiler crashes, hangs or disobeys.

Known faults that a rung can avoid: Myelin's fusion of RMS norms crashes on Thor at optimization level 3 and
above, FP8 and FP4 builds that end in a segmentation fault, NVFP4 builds that hang on TensorRT 10.13. So
levels are tried downwards, first with the wanted recipes, then with the fallbacks. Each failed rung is
announced and recorded: nothing falls back silently.
"""

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import msgspec

from pi05_runtime.build.attempt import ended_by_sigterm, run_attempt
from pi05_runtime.build.contract import (
    ONNX,
    TABLE,
    WEIGHTS,
    Attempt,
    BuildOptions,
    Built,
    Done,
    Part,
    Refused,
    Request,
)
from pi05_runtime.engines.library import Library
from pi05_runtime.errors import EngineError, TargetError
from pi05_runtime.geometry import COMPONENTS, FUSED, Signature, fixed_shape
from pi05_runtime.table import Table
from pi05_runtime.targets import find_target

LEVELS = (3, 2)
"""Builder optimization levels, the wanted one first. 3 is the libraries' default."""


def build_engine(
    target: str,
    variants: Mapping[str, Sequence[Path]],
    signatures: Mapping[str, Signature],
    buckets: Sequence[int],
    options: BuildOptions,
    out: Path,
) -> Built:
    """Writes `<component>.engine`, layers.json and layers.md to the folder `out`.

    variants: component -> its ONNX folders in order of preference; vision and prefill together are built as
    one network, `prefix`. signatures: of every component of the policy, and of `prefix` where that is built.
    buckets: prompt lengths, each an optimization profile with fixed shapes.

    Errors: TargetError without the target's library; EngineError at once for what no rung can change, and
    after the last rung with every attempt. An ONNX that does not parse is left for the fallback's. Nothing
    but a finished engine is left in `out`.
    """
    library, capability = _chip(target)
    name = _engine_name(variants)
    choices = _choices(variants)
    profiles = _profiles(signatures, signatures[name], buckets)
    failed: list[Attempt] = []
    refused, hopeless = Refused(""), None
    out.mkdir(parents=True, exist_ok=True)
    with ended_by_sigterm(), tempfile.TemporaryDirectory(prefix=".build.", dir=out) as scratch:
        for parts, level in product(choices, LEVELS):
            if parts is hopeless:
                continue
            recipes = {part.component: part.table.recipe for part in parts}
            rung = f"{target} {name}, {', '.join(recipes.values())}, optimization level {level}"
            if failed:
                print(f"trying {rung}", file=sys.stderr)
            answer = run_attempt(
                Request(
                    library=library,
                    compute_capability=capability,
                    name=name,
                    parts=parts,
                    signature=signatures[name],
                    profiles=profiles,
                    optimization_level=level,
                    options=options,
                    out=scratch,
                    parent=os.getpid(),
                ),
                options.minutes,
            )
            if isinstance(answer, Done):
                attempts = (*failed, Attempt(recipes, level, "built"))
                for file in sorted(Path(scratch).iterdir(), key=_engine_last):
                    file.rename(out / file.name)
                return Built(
                    recipes=recipes,
                    attempts=attempts,
                    layers=answer.evidence.precisions,
                    file=f"{name}.engine",
                    seconds=answer.seconds,
                    peak_gb=answer.peak_gb,
                )
            refused = answer
            if refused.final == "TargetError":
                raise TargetError(refused.reason)
            if refused.final == "EngineError" and parts is choices[-1]:
                raise EngineError(f"{target} {name}: {refused.reason}")
            print(f"{rung}: {refused.reason}\n{refused.detail}".rstrip(), file=sys.stderr)
            failed.append(Attempt(recipes, level, refused.reason))
            hopeless = parts if refused.final else None
    raise EngineError(_all_failed(target, name, failed, refused.detail))


def _chip(target: str) -> tuple[Library, str]:
    """(library, compute capability) of a target that TensorRT serves."""
    found = find_target(target)
    if found.engine == "ort" or found.compute_capability is None:
        raise TargetError(f"{target} runs the ONNX as it is: it has no engines to build")
    return found.engine, found.compute_capability


def _engine_name(variants: Mapping[str, Sequence[Path]]) -> str:
    """The network that these components are built as."""
    networks = {name: {name} for name in COMPONENTS} | {name: set(parts) for name, parts in FUSED.items()}
    for name, components in networks.items():
        if components == set(variants):
            return name
    raise EngineError(f"components {sorted(variants)} found, those of one of {networks} expected")


def _choices(variants: Mapping[str, Sequence[Path]]) -> list[tuple[Part, ...]]:
    """What to build from, the wanted recipes first; a component without a further one keeps its last."""
    parts = {
        name: [_read_part(name, folder) for folder in variants[name]]
        for name in COMPONENTS
        if name in variants
    }
    return [
        tuple(choices[min(rung, len(choices) - 1)] for choices in parts.values())
        for rung in range(max(map(len, parts.values())))
    ]


def _read_part(component: str, folder: Path) -> Part:
    for name in (ONNX, WEIGHTS, TABLE):
        if not (folder / name).is_file():
            raise EngineError(f"{folder / name} is missing; quantize {component} again, or pull the bundle")
    try:
        table = msgspec.json.decode((folder / TABLE).read_bytes(), type=Table)
    except msgspec.DecodeError as error:
        raise EngineError(f"{folder / TABLE} is not a table of layers: {error}; quantize again") from error
    if table.component != component:
        raise EngineError(f"{folder / TABLE}: component {table.component} found, {component} expected")
    return Part(component, str((folder / ONNX).resolve()), table)


def _profiles(
    signatures: Mapping[str, Signature], ports: Signature, buckets: Sequence[int]
) -> tuple[dict[str, tuple[int, ...]], ...]:
    """Shapes of the inputs that a bucket decides, one entry a bucket; none where no input is dynamic."""
    dynamic = [port for port in ports.inputs if any(isinstance(size, str) for size in port.shape)]
    if not dynamic:
        return ()
    image_tokens = signatures["vision"].outputs[0].shape[0]
    assert isinstance(image_tokens, int)
    return tuple(
        {port.name: fixed_shape(port, bucket, image_tokens) for port in dynamic} for bucket in buckets
    )


def _engine_last(file: Path) -> bool:
    return file.suffix == ".engine"


def _all_failed(target: str, name: str, failed: Sequence[Attempt], detail: str) -> str:
    lines = [f"{target} {name}: no engine after {len(failed)} attempts"]
    for attempt in failed:
        recipes = ", ".join(attempt.recipes.values())
        lines.append(f"  {recipes}, optimization level {attempt.optimization_level}: {attempt.outcome}")
    lines.append("name a fallback recipe for the component, keep layers at fault in bf16, or raise the limit")
    return "\n".join([*lines, detail] if detail else lines)
