"""LIBERO as openpi's client runs it, for tests: every scene in its order, every picture rendered.

    PYTHON libero_as_openpi.py SUITE TASK SCENE ACTIONS OUT

PYTHON is LIBERO's own. Acts ACTIONS, an .npy file of [chunks, steps, 7], in every scene up to SCENE, and
saves as OUT, an .npz file, what was seen in the last: before each chunk and after the last one."""

import os
import sys
from pathlib import Path

os.environ.setdefault("MUJOCO_GL", "egl")

import numpy as np
from libero.libero import benchmark, get_libero_path
from libero.libero.envs import OffScreenRenderEnv

SENSORS = (
    "agentview_image",
    "robot0_eye_in_hand_image",
    "robot0_eef_pos",
    "robot0_eef_quat",
    "robot0_gripper_qpos",
)


def main(suite: str, task: str, scene: str, actions: str, out: str) -> None:
    np.random.seed(7)
    tasks = benchmark.get_benchmark_dict()[suite]()
    found, states = tasks.get_task(int(task)), tasks.get_task_init_states(int(task))
    file = Path(get_libero_path("bddl_files")) / found.problem_folder / found.bddl_file
    env = OffScreenRenderEnv(bddl_file_name=file, camera_heights=256, camera_widths=256)
    env.seed(7)
    for number in range(int(scene) + 1):
        env.reset()
        seen = env.set_init_state(states[number])
        for _ in range(10):
            seen, *_ = env.step([0.0] * 6 + [-1.0])
        decided = [seen]
        for chunk in np.load(actions):
            for action in chunk:
                seen, *_ = env.step(action.tolist())
            decided.append(seen)
    np.savez(out, **{sensor: np.stack([seen[sensor] for seen in decided]) for sensor in SENSORS})
    sys.stdout.flush()
    os._exit(0)  # GL drivers may crash when they are torn down


if __name__ == "__main__":
    main(*sys.argv[1:])
