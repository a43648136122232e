"""Strict acceptance of an opened checkpoint into its canonical form.

This is the only door into the pipeline. A tensor that is missing, left over, of another shape or not
finite is named here, because a model that loads with a hole in it still moves a robot.
"""

from pathlib import Path

import msgspec
import torch
from safetensors.torch import save_file
from torch import Tensor

from export.artifacts import write_json
from export.checkpoint.canonical import Description
from export.checkpoint.source import Source
from export.model.parameters import canonical_shapes
from export.params import InterfaceParams
from export.stage import progress
from pi05_runtime.errors import CheckpointError
from pi05_runtime.interface import Interface

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
CHUNK = 1 << 24
"""Values checked at a time: the check needs copies, and the token table alone is half a billion."""


def resolve_interface(source: Source, given: InterfaceParams) -> Interface:
    """Joins what the checkpoint states with params.yaml: both may speak, but only with one voice."""
    values: dict[str, object] = {}
    for field in (f for f in given.__struct_fields__ if f != "normalization"):
        stated, wanted = getattr(source.stated, field), getattr(given, field)
        if field == "cameras" and stated and wanted:
            # A listed camera that the robot lacks is a masked slot, and those are left out.
            stated = tuple(camera for camera in stated if camera in wanted)
        if stated is not None and wanted is not None and stated != wanted:
            raise CheckpointError(
                f"{field}: the checkpoint says {stated}, params.yaml says {wanted}; "
                f"remove checkpoint.interface.{field} from params.yaml, or name the right checkpoint"
            )
        values[field] = stated if wanted is None else wanted
    modes = {source.normalization.state_mode, source.normalization.action_mode}
    if given.normalization is not None and modes != {given.normalization}:
        raise CheckpointError(
            f"normalization: the checkpoint says {' and '.join(sorted(modes))}, params.yaml says "
            f"{given.normalization}; set checkpoint.interface.normalization to null in params.yaml"
        )
    for field, statistics in (
        ("state_dims", source.normalization.state),
        ("action_dims", source.normalization.actions),
    ):
        width = len(statistics.q01 or statistics.mean)
        # Statistics of padded vectors do not tell how many dimensions are real.
        if values[field] is None and width < source.geometry.action_width:
            values[field] = width
    if missing := [field for field, value in values.items() if value is None]:
        raise CheckpointError(
            f"the checkpoint does not say {', '.join(missing)}: set them in params.yaml under "
            "checkpoint.interface; they are part of how the policy was trained"
        )
    interface = msgspec.convert(
        values
        | {
            "image_convention": source.normalization.convention,
            "normalization": source.normalization,
        },
        Interface,
        from_attributes=True,
    )
    if interface.action_dims > (width := source.geometry.action_width):
        raise CheckpointError(
            f"action_dims: {interface.action_dims} found, at most the {width} of the action head expected; "
            "check the statistics and checkpoint.interface.action_dims"
        )
    return interface


def check_names(source: Source) -> None:
    """Every expected tensor is there and no other. Errors: CheckpointError naming each one."""
    expected = {n for names in canonical_shapes(source.geometry).values() for n in names}
    found = source.tensors.keys()
    problems = [
        f"{label} {', '.join(sorted(names))}"
        for label, names in (("missing:", expected - found), ("unexpected:", found - expected))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"not the expected pi0.5 tensors ({len(expected)} expected, {len(found)} found); "
            f"{'; '.join(problems)}. Download the checkpoint again, or set checkpoint.layout right"
        )


def write_canonical(source: Source, description: Description, folder: Path) -> None:
    """Writes FILES and policy.json into `folder`, one component in memory at a time."""
    check_names(source)
    problems: list[str] = []
    with progress(total=len(source.tensors), desc="checkpoint", unit="tensor") as bar:
        for file, shapes in canonical_shapes(source.geometry).items():
            tensors: dict[str, Tensor] = {}
            # In the source's order: Orbax stacks layers, and jumping between leaves decodes them again.
            for name in (n for n in source.tensors if n in shapes):
                tensor = source.tensors[name]()
                problems += _problems(name, tensor, shapes[name])
                tensors[name] = tensor.contiguous()
                bar.update()
            if not problems:
                save_file(tensors, folder / f"{file}.safetensors")
    if problems:
        raise CheckpointError(
            "; ".join(problems) + ". The checkpoint is damaged, converted wrongly, or not the variant that "
            "its config.json names: download it again, or use an earlier one"
        )
    write_json(folder / "policy.json", description)


def _problems(name: str, tensor: Tensor, shape: tuple[int, ...]) -> list[str]:
    """What is wrong with a tensor: its shape, or its dtype, or values that are not finite."""
    if tuple(tensor.shape) != shape:
        hint = " (it is transposed)" if tuple(tensor.shape) == shape[::-1] else ""
        return [f"{name}: shape {list(tensor.shape)} found, {list(shape)} expected{hint}"]
    if tensor.dtype not in FLOATS:
        return [f"{name}: {tensor.dtype} found, a float dtype of 16 bits or more expected"]
    bad = sum(int((~torch.isfinite(part)).sum()) for part in tensor.flatten().split(CHUNK))
    return [f"{name}: {bad} of {tensor.numel()} values are NaN or infinite"] if bad else []
