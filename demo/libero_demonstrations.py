"""Record what the LIBERO policy learns from: decisions of episodes, with what the expert does from there.

The expert acts, its hand pushed aside by slowly changing noise; the recorded chunk is what it would do
undisturbed. Episodes in which it fails are left out. So the policy also sees what to do beside the expert's
path; README.md says what it solved without that.

Needs LIBERO's environment (`make libero`). Scenes are drawn from seeds, from --first on; LIBERO's own initial
states stay for judging. Writes `libero_spatial-<task>-<first>.npz` (decisions.py), again as it grows.

    python -m demo.libero_demonstrations FOLDER --first SEED --episodes N
"""

import argparse
from contextlib import closing
from pathlib import Path

import numpy as np

from demo.decisions import Decisions, disturbances, picture
from export.stage import progress, run_stage
from validate.closed_loop.records import ClosedLoopError
from validate.closed_loop.simulator import SimulatorProcess
from validate.closed_loop.simulators import Observation
from validate.closed_loop.suites import SUITES

SUITE, TASK = "libero_spatial", "2"
CAMERAS = ("image", "wrist_image")
SIMULATOR = "demo.libero_scenes"
DISTURBANCE = 0.15
"""The largest standard deviation of an episode, in units of the action. The expert failed in 9 of 182
episodes, with 0.25 in 27 of 115."""
SAVED_EVERY = 10


def record_episode(simulator: SimulatorProcess, seed: int) -> Decisions | None:
    """Every decision of one disturbed episode, or None if the expert did not succeed."""
    suite, decisions, steps = SUITES[SUITE], Decisions(), 0
    offsets = disturbances(seed, DISTURBANCE, 7)
    seen: Observation | None = simulator.reset(seed)
    while seen is not None and steps < suite.max_steps:
        chunk = simulator.expert()
        decisions.episodes.append(seed)
        decisions.states.append(np.asarray(seen["observation/state"]))
        decisions.chunks.append(chunk)
        decisions.pictures += [picture(np.asarray(seen[f"observation/{camera}"])) for camera in CAMERAS]
        disturbed = [action + next(offsets) for action in chunk[: suite.executed]]
        outcome = simulator.execute(np.clip(disturbed, -1, 1).astype(np.float32))
        steps += outcome.steps
        seen = outcome.observation
    return decisions if seen is None else None


def main(*arguments: str) -> None:
    parser = argparse.ArgumentParser(description="Record demonstrations of one LIBERO task.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--first", type=int, required=True, help="seed of the first scene")
    parser.add_argument("--episodes", type=int, required=True, help="that are tried")
    parser.add_argument("--simulator", type=Path, default=Path("artifacts/libero/bin/python"))
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / f"{SUITE}-{TASK}-{options.first}.npz"
    decisions, recorded = Decisions(), 0
    with closing(SimulatorProcess(options.simulator, SIMULATOR)) as simulator:
        prompt = simulator.prompts(SUITE)[TASK]
        simulator.open(SUITE, TASK)
        seeds = range(options.first, options.first + options.episodes)
        for tried, seed in enumerate(progress(seeds, desc=path.stem, unit="episode"), 1):
            episode = record_episode(simulator, seed)
            if episode is not None:
                decisions.extend(episode)
                recorded += 1
            if recorded and (tried % SAVED_EVERY == 0 or tried == options.episodes):
                decisions.save(path, SUITE, CAMERAS, prompt)
    if not recorded:
        raise ClosedLoopError(
            f"{path}: the expert succeeded in none of {options.episodes} episodes, and nothing was written; "
            "try more, or other seeds"
        )
    print(f"{path}: {recorded} of {options.episodes} episodes, {len(decisions.states)} decisions")


if __name__ == "__main__":
    run_stage(main)
