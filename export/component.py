"""A component as the artifacts describe it: its network, its ports, its recorded inputs."""

from collections.abc import Iterator

import msgspec
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from export.artifacts import CALIBRATION, SCHEDULE, TABLES, read_json
from export.checkpoint.canonical import read_description, read_weights
from export.model.fold import build
from export.params import Params
from pi05_runtime.geometry import Signature, signatures
from pi05_runtime.tables import read_schedule


class CalibrationSet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """set.json of the calibration. sha256 covers the observations, in order, with their images.
    episodes: (task, episode) of all of them, which no gate may judge on."""

    sha256: str
    observations: int
    episodes: tuple[tuple[str, int], ...]


def read_calibration_set() -> CalibrationSet:
    """Errors: ArtifactError."""
    return read_json(CALIBRATION / "set.json", CalibrationSet)


def build_component(component: str, params: Params) -> nn.Module:
    """The export form of a component in bf16, from the canonical checkpoint."""
    d = read_description()
    frequencies = getattr(torch, params.export.rope_frequencies)
    return build(component, read_weights(component), d.geometry, d.interface, torch.bfloat16, frequencies)


def component_signatures() -> dict[str, Signature]:
    """The ports of every component of the current checkpoint, and of `prefix`."""
    d = read_description()
    return signatures(d.geometry, len(d.interface.cameras), d.interface.horizon)


def component_inputs(component: str) -> Iterator[dict[str, Tensor]]:
    """Every recorded input of a component, as keyword arguments of its export form.

    A whole observation for vision and prefill; for denoise each state of each recorded loop.
    """
    stored = load_file(CALIBRATION / f"{component}.safetensors")
    samples = 1 + max(int(name.rsplit(".", 1)[1]) for name in stored)
    for i in range(samples):
        sample = {name.rsplit(".", 1)[0]: t for name, t in stored.items() if name.endswith(f".{i}")}
        if component == "denoise":
            yield from _steps(sample)
        else:
            yield sample


def _steps(sample: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    states = sample.pop("x")
    schedule = read_schedule(TABLES / SCHEDULE, len(states))
    for x, modulation in zip(states, torch.from_numpy(schedule.modulation), strict=True):
        yield sample | {"x": x, "modulation": modulation, "dt": torch.tensor(schedule.dt)}
