"""Stage `reference`: what the plain BF16 model answers on held-out observations, and FP32 beside it.

Computed by the model that was checked against openpi (export/model/reference.py), without any of the
export form's simplifications. FP32 on the same inputs gives the noise floor: how far BF16 is from
itself, below which an engine's error means nothing.
"""

from collections.abc import Mapping

import torch
from safetensors.torch import save_file
from torch import Tensor

from export.artifacts import REFERENCE
from export.checkpoint.canonical import Description, read_description, read_weights
from export.component import read_calibration_set
from export.model.parameters import FILES
from export.model.reference import Cache, Reference
from export.model.schedule import times
from export.observations import NOISE_SEED, Observations, check_disjoint, preprocessor, seeded_noise
from export.params import Params, load_params
from export.stage import progress, run_stage
from pi05_runtime.preprocess import Inputs
from pi05_runtime.staging import staged


def load_reference(description: Description, params: Params, bf16: bool) -> Reference:
    """The plain model over the canonical weights."""
    with torch.device("meta"):
        model = Reference(description.geometry, getattr(torch, params.export.rope_frequencies))
    model.load_state_dict(read_weights(*FILES), strict=True, assign=True)
    return (model.to_bf16() if bf16 else model.float()).requires_grad_(False).eval()


def stacked(cache: Cache) -> tuple[Tensor, Tensor]:
    """A batch-of-one cache as (keys, values), each [depth, P, head_dim]."""
    keys, values = (torch.stack([pair[i][0, 0] for pair in cache]) for i in (0, 1))
    return keys, values


def answer(
    model: Reference, inputs: Inputs, noise: Tensor, params: Params, given: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Every component's output and the whole loop's actions for one observation.

    given: outputs of another precision's model. Where present, each component runs on those instead
    of on its own chain, so that a floor is that component's alone; the actions are always its own.
    """
    dtype = model.projector.weight.dtype
    image_tokens = model.embed_images(torch.from_numpy(inputs.images)).flatten(0, 1)
    prompt = model.embed_prompt(torch.from_numpy(inputs.prompt.token_ids))

    def prefill(tokens: Tensor) -> tuple[Cache, Tensor]:
        prefix = torch.cat([tokens.to(dtype), prompt])[None]
        valid = torch.ones(prefix.shape[:2], dtype=torch.bool)
        return model.prefill(prefix, valid), valid

    cache, valid = prefill(image_tokens)
    actions = {
        f"actions.{n}": model.sample(noise[None], cache, valid, n, "openpi")[0] for n in params.gates.steps
    }
    if given:
        keys, values = stacked(prefill(given["image_tokens"])[0])
        pairs = zip(given["keys"].to(dtype), given["values"].to(dtype), strict=True)
        cache = [(k[None, None], v[None, None]) for k, v in pairs]
        states = given["states"]
    else:
        keys, values = stacked(cache)
        states = _trajectory(model, noise, cache, valid, params.export.default_steps)
    velocity = torch.cat(
        [model.velocity(x[None], t, cache, valid) for x, t in zip(states, times(len(states)), strict=True)]
    )
    outputs = {"image_tokens": image_tokens, "keys": keys, "values": values}
    return outputs | {"states": states, "velocity": velocity} | actions


@torch.no_grad()
def main() -> None:
    params, description = load_params(), read_description()
    observations, prepare = Observations(params.heldout), preprocessor(params)
    check_disjoint(read_calibration_set().episodes, observations)
    results: dict[str, list[dict[str, Tensor]]] = {"bf16": [], "fp32": []}
    for precision, answers in results.items():
        model = load_reference(description, params, bf16=precision == "bf16")
        for i in progress(range(len(observations)), desc=f"reference {precision}"):
            noise = seeded_noise(NOISE_SEED + i)
            given = results["bf16"][i] if precision == "fp32" else {}
            inputs = prepare(observations[i])
            answers.append(answer(model, inputs, torch.from_numpy(noise), params, given))
    with staged(REFERENCE) as folder:
        for precision, answers in results.items():
            flat = {f"{name}.{i}": t.contiguous() for i, a in enumerate(answers) for name, t in a.items()}
            save_file(flat, folder / f"{precision}.safetensors")
    print(f"reference: {len(observations)} held-out observations")


def _trajectory(model: Reference, noise: Tensor, cache: Cache, valid: Tensor, steps: int) -> Tensor:
    """The states [steps, horizon, width] at which a loop of `steps` evaluates the velocity."""
    x, states, dt = noise, [], torch.tensor(-1.0 / steps)
    for t in times(steps):
        states.append(x)
        x = x + dt * model.velocity(x[None], t, cache, valid)[0]
    return torch.stack(states)


if __name__ == "__main__":
    run_stage(main)
