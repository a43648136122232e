"""Record what the demo policy learns from: MetaWorld's experts, disturbed and always knowing better.

The episodes are driven by the expert plus a slowly changing disturbance of the hand, while every recorded
chunk holds what the expert itself does from that state on, undisturbed: the simulator is run ahead for one
horizon and put back. Episodes whose expert does not succeed are left out.

Needs the simulators' environment, as record.py does. Writes one `<task>.npz` a task (decisions.py).

    python -m demo.demonstrations FOLDER
"""

import sys
import warnings
from pathlib import Path

import numpy as np
from tqdm import tqdm

from demo.decisions import HORIZON, Decisions, disturbances, picture
from validate.closed_loop.simulators.metaworld import (
    CAMERAS,
    STATE_DIMS,
    TASKS,
    act,
    look_ahead,
    make_env,
    render,
    rendering,
)

EPISODES = {"drawer-open-v3": 120, "button-press-topdown-v3": 120, "reach-v3": 120, "push-v3": 431}
SEEDS = range(30000, 40000)  # record.py's calibration and held-out scenes have other seeds
STRIDE = 3  # neighbouring frames are near copies
MAX_STEPS = 200
STEPS_AFTER_SUCCESS = 6
DISTURBANCE = {"drawer-open-v3": 0.5, "button-press-topdown-v3": 0.5, "reach-v3": 0.5, "push-v3": 0.25}
"""The largest standard deviation of an episode, in units of the action. With 0.5 the expert that has to grasp
a puck failed in 147 of 327 episodes, with 0.25 in 69 of 500."""


def run_episode(task: str, seed: int) -> Decisions | None:
    """Every STRIDE-th decision of one disturbed episode, or None if the expert did not succeed."""
    env = make_env(task, seed)
    expert = TASKS[task][1]()
    decisions, remaining, succeeded = Decisions(), MAX_STEPS, False
    first = seed % STRIDE
    with rendering(env) as renderer:
        observation, _ = env.reset()
        for step, disturbance in enumerate(disturbances(seed, DISTURBANCE[task], 4)):
            if step % STRIDE == first:
                frames = render(renderer, env.data)
                decisions.episodes.append(seed)
                decisions.states.append(observation[:STATE_DIMS].astype(np.float32))
                decisions.pictures += [picture(frames[camera]) for camera in CAMERAS]
                decisions.chunks.append(look_ahead(env, expert, observation, HORIZON))
            action = np.clip(act(expert, observation) + disturbance, -1, 1).astype(np.float32)
            observation, _, _, _, info = env.step(action)
            if info["success"] and not succeeded:
                succeeded, remaining = True, STEPS_AFTER_SUCCESS
            remaining -= 1
            if remaining <= 0:
                return decisions if succeeded else None


def record_task(task: str, folder: Path) -> None:
    """As many successful episodes of one task as EPISODES has, in the order of their seeds."""
    decisions, recorded, seeds = Decisions(), 0, iter(SEEDS)
    with tqdm(total=EPISODES[task], desc=task, unit="episode", mininterval=30) as bar:
        while recorded < EPISODES[task]:
            episode = run_episode(task, next(seeds))
            if episode is not None:
                decisions.extend(episode)
                recorded += 1
                bar.update()
    path = folder / f"{task}.npz"
    decisions.save(path, "metaworld", CAMERAS, TASKS[task][0])
    tried = next(seeds) - SEEDS[0]
    size = path.stat().st_size / 1e6
    print(f"{task}: {recorded} of {tried} episodes, {len(decisions.states)} decisions, {size:.1f} MB")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message="Constant")  # the experts' gains exceed the action range
    destination = Path(sys.argv[1])
    destination.mkdir(parents=True, exist_ok=True)
    for name in TASKS:
        record_task(name, destination)
