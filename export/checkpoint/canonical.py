"""The canonical checkpoint as every later stage reads it: one description, weights by component."""

from pathlib import Path

import msgspec
from safetensors import safe_open
from torch import Tensor

from export.artifacts import CHECKPOINT, read_json
from pi05_runtime.geometry import Geometry
from pi05_runtime.interface import Interface


class Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """policy.json: all that is known of the policy beside its weights. source: file -> sha256."""

    geometry: Geometry
    interface: Interface
    layout: str
    source: dict[str, str]


def read_description(folder: Path = CHECKPOINT) -> Description:
    """Errors: ArtifactError."""
    return read_json(folder / "policy.json", Description)


def read_weights(*files: str, folder: Path = CHECKPOINT) -> dict[str, Tensor]:
    """Tensors of the named canonical files, over memory maps."""
    weights: dict[str, Tensor] = {}
    for file in files:
        with safe_open(folder / f"{file}.safetensors", framework="pt") as handle:
            weights |= {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    return weights
