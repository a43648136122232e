"""Stage `calibrate`: the inputs that each component really sees, recorded once for every recipe.

Recorded observations run through the robot's own preprocessing and the unquantized bf16 components,
over a whole denoise loop. Random or zero inputs have cost others a third of their successes, so the
set is never empty, never skips a failed observation, and its hash travels with the bundle.
"""

import torch
from safetensors.torch import save_file
from torch import Tensor

from export.artifacts import CALIBRATION, SCHEDULE, TABLES, write_json
from export.component import CalibrationSet, build_component
from export.observations import Observations, preprocessor, seeded_noise
from export.params import load_params
from export.stage import progress, run_stage
from pi05_runtime.errors import EngineError
from pi05_runtime.staging import staged
from pi05_runtime.tables import read_schedule

DTYPE = torch.bfloat16


@torch.no_grad()
def main() -> None:
    params = load_params()
    observations = Observations(params.calibration)
    prepare = preprocessor(params)
    schedule = read_schedule(TABLES / SCHEDULE, params.export.default_steps)
    recorded: dict[str, dict[str, Tensor]] = {"vision": {}, "prefill": {}, "denoise": {}}
    lengths: list[Tensor] = []
    count = len(observations)

    for i in progress(range(count), desc="calibrate preprocessing"):
        inputs = prepare(observations[i])
        lengths.append(torch.tensor(inputs.prompt.prefix_length, dtype=torch.int32))
        recorded["vision"][f"images.{i}"] = torch.from_numpy(inputs.images)
        # Without the bucket's padding: what nothing attends to must not widen a range.
        prompt = torch.from_numpy(inputs.prompt.embeddings[: len(inputs.prompt.token_ids)])
        recorded["prefill"][f"prompt_embeddings.{i}"] = prompt.to(DTYPE)
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
        x = torch.from_numpy(seeded_noise(i))
        cache = {name: recorded["denoise"][f"{name}.{i}"] for name in ("keys", "values", "prefix_length")}
        states: list[Tensor] = []
        for modulation in torch.from_numpy(schedule.modulation):
            states.append(x)
            x = _finite(denoise(x, modulation, dt, **cache), i)
        recorded["denoise"][f"x.{i}"] = torch.stack(states)

    summary = CalibrationSet(observations.sha256(), count, observations.episodes)
    with staged(CALIBRATION) as folder:
        for component, tensors in recorded.items():
            save_file(tensors, folder / f"{component}.safetensors")
        write_json(folder / "set.json", summary)
    print(f"calibrate: {count} observations of {len(summary.episodes)} episodes, set {summary.sha256[:12]}")


def _finite(tensor: Tensor, observation: int) -> Tensor:
    if not torch.isfinite(tensor).all():
        raise EngineError(
            f"observation {observation} of the calibration set gives NaN or infinity in bf16: "
            "the checkpoint overflows; check that its normalisation statistics are its own"
        )
    return tensor


if __name__ == "__main__":
    run_stage(main)
