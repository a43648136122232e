"""Record what a robot policy sees, from MetaWorld's scripted experts, as calibration and held-out data.

Quantisation ranges and accuracy figures mean little on random pixels, so the demo ships real observations:
two cameras, the robot's state and the task's prompt. The split is by episode (other seeds, hence other
scenes), because neighbouring frames of one episode are near copies. The scenes are those in which closed
loops judge policies, with other seeds.

Writes `observations/` (PNG files and `index.jsonl`) and `assets/metaworld/norm_stats.json` (openpi's format)
beside this file; both replace the old ones only after everything was recorded.
"""

import json
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from validate.closed_loop.simulators.metaworld import (
    CAMERAS,
    STATE_DIMS,
    TASKS,
    act,
    make_env,
    render,
    rendering,
)

DEMO = Path(__file__).resolve().parent
SEEDS = {"calibration": range(10000, 10005), "heldout": range(20000, 20002)}
FRAMES_PER_EPISODE = 4
MAX_STEPS = 150  # the experts need 45 to 100


@dataclass(frozen=True)
class Episode:
    """One successful run of an expert; entry k of every field belongs to control step k."""

    states: NDArray[np.float64]
    actions: NDArray[np.float64]
    frames: list[dict[str, NDArray[np.uint8]]]


def run_expert(task: str, seed: int) -> Episode:
    """Let the scripted expert solve one scene, up to and including the step that succeeds."""
    env = make_env(task, seed)
    expert = TASKS[task][1]()
    states, actions, frames = [], [], []
    with rendering(env) as renderer:
        observation, _ = env.reset()
        for _ in range(MAX_STEPS):
            action = act(expert, observation)
            states.append(observation[:STATE_DIMS])
            actions.append(action)
            frames.append(render(renderer, env.data))
            observation, _, _, _, info = env.step(action)
            if info["success"]:
                return Episode(np.array(states), np.array(actions, np.float64), frames)
    raise SystemExit(
        f"{task}, seed {seed}: the expert did not succeed within {MAX_STEPS} steps; nothing was written"
    )


def save_observations(folder: Path, task: str, seed: int, split: str, episode: Episode) -> list[str]:
    """Save evenly spaced steps of an episode as PNG files; returns their lines of the index."""
    lines = []
    length = len(episode.frames)
    for part in range(FRAMES_PER_EPISODE):
        step = (2 * part + 1) * length // (2 * FRAMES_PER_EPISODE)  # the middle of each quarter
        images = {camera: f"{task}-{seed}-{step:03d}-{camera}.png" for camera in CAMERAS}
        for camera, name in images.items():
            Image.fromarray(episode.frames[step][camera]).save(folder / name, optimize=True)
        record = {
            "task": task,
            "episode": seed,
            "step": step,
            "split": split,
            "prompt": TASKS[task][0],
            "state": [round(value, 6) for value in episode.states[step].tolist()],
            "images": images,
        }
        lines.append(json.dumps(record) + "\n")
    return lines


def statistics(values: NDArray[np.float64]) -> dict[str, list[float]]:
    """Statistics of each column, under openpi's names."""
    rows = {
        "mean": values.mean(axis=0),
        "std": values.std(axis=0),
        "q01": np.quantile(values, 0.01, axis=0),
        "q99": np.quantile(values, 0.99, axis=0),
    }
    return {name: row.round(6).tolist() for name, row in rows.items()}


def main() -> None:
    """Record all tasks and splits, then put the results in place."""
    warnings.filterwarnings(
        "ignore", message="Constant"
    )  # the experts' gains exceed the action range by design
    plan = [(split, task, seed) for split, seeds in SEEDS.items() for task in TASKS for seed in seeds]
    with tempfile.TemporaryDirectory(prefix=".recording-", dir=DEMO) as temporary:
        new_observations = Path(temporary) / "observations"
        new_observations.mkdir()
        index: list[str] = []
        calibration: list[Episode] = []
        for split, task, seed in tqdm(plan, unit="episode"):
            episode = run_expert(task, seed)
            index += save_observations(new_observations, task, seed, split, episode)
            if split == "calibration":
                calibration.append(episode)
        (new_observations / "index.jsonl").write_text("".join(index))
        norm_stats = {
            "state": statistics(np.concatenate([episode.states for episode in calibration])),
            "actions": statistics(np.concatenate([episode.actions for episode in calibration])),
        }
        new_norm_stats = Path(temporary) / "norm_stats.json"
        new_norm_stats.write_text(json.dumps({"norm_stats": norm_stats}, indent=2) + "\n")

        shutil.rmtree(DEMO / "observations", ignore_errors=True)
        new_observations.rename(DEMO / "observations")
        (DEMO / "assets/metaworld").mkdir(exist_ok=True)
        new_norm_stats.replace(DEMO / "assets/metaworld" / "norm_stats.json")


if __name__ == "__main__":
    main()
