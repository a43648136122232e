"""Stage `calibrate`: the inputs that each component really sees, recorded once for every recipe.

Recorded observations run through the robot's own preprocessing and the unquantized bf16 components,
over a whole denoise loop. Random or zero inputs have cost others a third of their successes, so the
set is never empty, never skips a failed observation, and its hash travels with the bundle.
"""

from collections.abc import Iterator

import msgspec
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from export.checkpoint.canonical import read_description, read_weights
from export.model.fold import build
from export.observations import Observations, check_disjoint
from export.params import Params, load_params
from export.stage import ARTIFACTS, progress, run_stage, staged
from export.tables import FOLDER as TABLES
from export.tables import preprocessor
from pi05_runtime.errors import EngineError
from pi05_runtime.geometry import Geometry
from pi05_runtime.tables import Schedule, read_schedule

FOLDER = ARTIFACTS / "calibration"
DTYPE = torch.bfloat16


class CalibrationSet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """set.json. sha256 covers the observations, in order, with their images."""

    sha256: str
    observations: int
    tasks: dict[str, int]
    steps: int


def build_component(component: str, params: Params, dtype: torch.dtype = DTYPE) -> nn.Module:
    """The export form of a component from the canonical checkpoint."""
    d = read_description()
    frequencies = getattr(torch, params.export.rope_frequencies)
    return build(component, read_weights(component), d.geometry, d.interface, dtype, frequencies)


def seeded_noise(seed: int, horizon: int, geometry: Geometry) -> np.ndarray:
    """Flow noise float32 [horizon, action width]; one seed, one noise, everywhere."""
    return np.random.default_rng(seed).standard_normal((horizon, geometry.action_width), np.float32)


def component_inputs(component: str) -> Iterator[dict[str, Tensor]]:
    """Every recorded input of a component, as keyword arguments of its export form."""
    stored = load_file(FOLDER / f"{component}.safetensors")
    samples = 1 + max(int(name.rsplit(".", 1)[1]) for name in stored)
    schedule = _schedule() if component == "denoise" else None
    for i in range(samples):
        sample = {name.rsplit(".", 1)[0]: t for name, t in stored.items() if name.endswith(f".{i}")}
        if schedule is None:
            yield sample
            continue
        states = sample.pop("x")
        for x, modulation in zip(states, schedule.modulation, strict=True):
            yield sample | {
                "x": x,
                "modulation": torch.from_numpy(modulation),
                "dt": torch.tensor(schedule.dt),
            }


def _schedule() -> Schedule:
    steps = msgspec.json.decode((FOLDER / "set.json").read_bytes(), type=CalibrationSet).steps
    return read_schedule(TABLES / "schedule.safetensors", steps)


@torch.no_grad()
def main() -> None:
    params, description = load_params(), read_description()
    observations = Observations(params.calibration)
    check_disjoint(observations, Observations(params.heldout))
    prepare = preprocessor(params)
    schedule = read_schedule(TABLES / "schedule.safetensors", params.export.default_steps)
    recorded: dict[str, dict[str, Tensor]] = {"vision": {}, "prefill": {}, "denoise": {}}
    lengths: list[Tensor] = []
    count = len(observations)

    for i in progress(range(count), desc="calibrate preprocessing"):
        inputs = prepare(observations[i])
        lengths.append(torch.tensor(inputs.prefix_length, dtype=torch.int32))
        recorded["vision"][f"images.{i}"] = torch.from_numpy(inputs.images)
        recorded["prefill"][f"prompt_embeddings.{i}"] = torch.from_numpy(inputs.prompt_embeddings).to(DTYPE)
    vision = build_component("vision", params)
    for i in progress(range(count), desc="calibrate vision"):
        recorded["prefill"][f"image_tokens.{i}"] = _finite(vision(recorded["vision"][f"images.{i}"]), i)
        recorded["prefill"][f"prefix_length.{i}"] = lengths[i]
    del vision
    prefill = build_component("prefill", params)
    for i in progress(range(count), desc="calibrate prefill"):
        sample = {name: recorded["prefill"][f"{name}.{i}"] for name in ("image_tokens", "prompt_embeddings")}
        keys, values = prefill(**sample, prefix_length=lengths[i])
        recorded["denoise"] |= {f"keys.{i}": _finite(keys, i), f"values.{i}": _finite(values, i)}
        recorded["denoise"][f"prefix_length.{i}"] = lengths[i].clone()
    del prefill
    denoise = build_component("denoise", params)
    dt = torch.tensor(schedule.dt)
    for i in progress(range(count), desc="calibrate denoise"):
        x = torch.from_numpy(seeded_noise(i, description.interface.horizon, description.geometry))
        cache = {name: recorded["denoise"][f"{name}.{i}"] for name in ("keys", "values", "prefix_length")}
        states: list[Tensor] = []
        for modulation in torch.from_numpy(schedule.modulation):
            states.append(x)
            x = _finite(denoise(x, modulation, dt, **cache), i)
        recorded["denoise"][f"x.{i}"] = torch.stack(states)

    tasks = [r.task for r in observations.records]
    summary = CalibrationSet(
        observations.sha256(), count, {t: tasks.count(t) for t in sorted(set(tasks))}, schedule.steps
    )
    with staged(FOLDER) as folder:
        for component, tensors in recorded.items():
            save_file(tensors, folder / f"{component}.safetensors")
        (folder / "set.json").write_bytes(msgspec.json.format(msgspec.json.encode(summary)))
    print(f"calibrate: {count} observations of {len(summary.tasks)} tasks, set {summary.sha256[:12]}")


def _finite(tensor: Tensor, observation: int) -> Tensor:
    if not torch.isfinite(tensor).all():
        raise EngineError(
            f"observation {observation} of the calibration set gives NaN or infinity in bf16: "
            "the checkpoint overflows; check that its normalisation statistics are its own"
        )
    return tensor


if __name__ == "__main__":
    run_stage(main)
