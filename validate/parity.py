"""Stage `parity`: one component's engine against the BF16 reference, on the reference's own inputs.

A component alone shows where an error comes from; the whole loop (actions.py) shows what it does.
"""

from contextlib import closing

import numpy as np

from export.artifacts import SCHEDULE, TABLES
from export.engine.judge import open_judged
from export.observations import Observations, preprocessor
from export.params import load_params
from export.stage import progress, run_stage
from pi05_runtime.engines import Engine
from pi05_runtime.preprocess import Inputs
from pi05_runtime.tables import Schedule, read_schedule
from validate.metrics import Answers, judge

GIVEN = ("image_tokens", "keys", "values", "states")
PADDING = 1e3
"""What the cache holds beyond the prefix: large, so that an engine that looks there is found out."""


def component_answer(
    component: str, engine: Engine, inputs: Inputs, given: dict[str, np.ndarray], schedule: Schedule
) -> dict[str, np.ndarray]:
    """The engine's outputs, shaped like the reference's, on the reference's inputs `given`."""
    length = np.asarray(inputs.prompt.prefix_length, np.int32)
    if component == "vision":
        return engine.run("vision", {"images": inputs.images})
    if component == "prefill":
        cache = engine.run(
            "prefill",
            {
                "image_tokens": given["image_tokens"],
                "prompt_embeddings": inputs.prompt.embeddings,
                "prefix_length": length,
            },
        )
        return {name: tensor[:, : inputs.prompt.prefix_length] for name, tensor in cache.items()}
    bucket = len(given["image_tokens"]) + len(inputs.prompt.embeddings)
    padding = ((0, 0), (0, bucket - inputs.prompt.prefix_length), (0, 0))
    cache = {name: np.pad(given[name], padding, constant_values=PADDING) for name in ("keys", "values")}
    fixed = cache | {"prefix_length": length}
    velocity = [
        (
            engine.run("denoise", fixed | {"x": x, "modulation": m, "dt": np.asarray(schedule.dt)})["x_next"]
            - x
        )
        / schedule.dt
        for x, m in zip(given["states"], schedule.modulation, strict=True)
    ]
    return {"velocity": np.stack(velocity)}


def main(target: str, component: str) -> None:
    params = load_params()
    reference, observations, prepare = Answers(), Observations(params.heldout), preprocessor(params)
    schedule = read_schedule(TABLES / SCHEDULE, params.export.default_steps)
    answers: dict[str, list[np.ndarray]] = {}
    engine, judged = open_judged(target, [component])
    with closing(engine):
        for i in progress(range(reference.count), desc=f"parity {component}"):
            given = {name: reference.bf16[f"{name}.{i}"] for name in GIVEN}
            found = component_answer(component, engine, prepare(observations[i]), given, schedule)
            for name, output in found.items():
                answers.setdefault(name, []).append(output)
    measured = {name: reference.measure(name, outputs) for name, outputs in answers.items()}
    judge(params, target, component, judged, reference.count, measured)


if __name__ == "__main__":
    run_stage(main)
