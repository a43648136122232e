"""Stage `actions`: whole-loop actions of a target's engines against the BF16 reference.

At every step count, from the same noise: an error that one step hides can turn a loop around.
"""

from contextlib import closing

import numpy as np

from export.artifacts import SCHEDULE, TABLES
from export.checkpoint.canonical import read_description
from export.engine.judge import open_judged
from export.gates import ACTIONS
from export.observations import NOISE_SEED, Observations, preprocessor, seeded_noise
from export.params import load_params
from export.stage import progress, run_stage
from pi05_runtime.tables import read_schedule
from validate.metrics import Answers, judge


def main(target: str) -> None:
    params, d = load_params(), read_description()
    reference, observations, prepare = Answers(), Observations(params.heldout), preprocessor(params)
    schedules = {n: read_schedule(TABLES / SCHEDULE, n) for n in params.gates.steps}
    answers: dict[str, list[np.ndarray]] = {f"actions.{n}": [] for n in schedules}
    engine, judged = open_judged(target, params.networks(target))
    with closing(engine):
        for i in progress(range(reference.count), desc="actions"):
            inputs = prepare(observations[i])
            noise = seeded_noise(NOISE_SEED + i)
            for n, schedule in schedules.items():
                answers[f"actions.{n}"].append(engine.decide(inputs, noise, schedule).actions)
    # Padding dimensions never reach a robot.
    dims = d.interface.action_dims
    measured = {name: reference.measure(name, outputs, dims) for name, outputs in answers.items()}
    judge(params, target, ACTIONS, judged, reference.count, measured)


if __name__ == "__main__":
    run_stage(main)
