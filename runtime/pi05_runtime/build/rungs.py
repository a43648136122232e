"""The rungs of the ladder: which recipes to build from, at which level, and all that a worker must know."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from pi05_runtime.build.contract import ONNX, TABLE, WEIGHTS, BuildOptions, Part, Request
from pi05_runtime.errors import EngineError, TargetError
from pi05_runtime.geometry import COMPONENTS, FUSED, Signature, fixed_shape
from pi05_runtime.layer_table import Table
from pi05_runtime.targets import Library, find_target

LEVELS = (3, 2)
"""Builder optimization levels, the wanted one first. 3 is the libraries' default."""


def list_rungs(
    target: str,
    variants: Mapping[str, Sequence[Path]],
    signatures: Mapping[str, Signature],
    buckets: Sequence[int],
    options: BuildOptions,
    out: Path,
) -> list[list[Request]]:
    """What to try: choices of recipes in their order, each at all levels in theirs.

    Arguments and errors are those of build_engine.
    """
    library, capability = _chip(target)
    name = _engine_name(variants)
    profiles = _profiles(signatures, signatures[name], buckets)
    return [
        [
            Request(
                library=library,
                compute_capability=capability,
                name=name,
                parts=parts,
                signature=signatures[name],
                profiles=profiles,
                optimization_level=level,
                options=options,
                out=str(out),
            )
            for level in LEVELS
        ]
        for parts in _choices(variants)
    ]


def _chip(target: str) -> tuple[Library, str]:
    """(library, compute capability) of a target that TensorRT serves."""
    found = find_target(target)
    if not found.from_onnx or found.compute_capability is None:
        raise TargetError(f"{target} is not built with TensorRT: it has no engines to build")
    return found.library, found.compute_capability


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
