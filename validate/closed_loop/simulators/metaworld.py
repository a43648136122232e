"""MetaWorld's tasks as the demo's policy sees them: two cameras, the gripper's position and opening, a
prompt.

The demo records its observations and demonstrations through this very module. Each scene has a simulator of
its own: MetaWorld's reset keeps traces of the episode before, and this way a scene depends on nothing but its
task and seed.
"""

import os
import warnings
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from functools import cache

os.environ.setdefault("MUJOCO_GL", "egl")

import metaworld
import mujoco
import numpy as np
from metaworld import policies
from metaworld.policies.policy import Policy
from numpy.typing import NDArray

from validate.closed_loop.simulators import Observation, Outcome

PACKAGES = ("metaworld", "mujoco", "numpy")
TASKS: dict[str, tuple[str, type[Policy]]] = {
    "drawer-open-v3": ("open the drawer", policies.SawyerDrawerOpenV3Policy),
    "button-press-topdown-v3": ("press the button from the top", policies.SawyerButtonPressTopdownV3Policy),
    "reach-v3": ("reach the goal position", policies.SawyerReachV3Policy),
    "push-v3": ("push the puck to the goal", policies.SawyerPushV3Policy),
}
CAMERAS = ("corner2", "gripperPOV")
WIDTH, HEIGHT = 160, 120  # not square, so that a policy's resize-with-pad has something to pad
STATE_DIMS = 4  # gripper x, y, z and opening
AHEAD = 5


@cache
def _benchmark(task: str) -> metaworld.MT1:
    """MetaWorld's fixed list of scenes, which takes most of a second to draw and decides nothing here."""
    return metaworld.MT1(task, seed=0)


def make_env(task: str, seed: int) -> metaworld.SawyerXYZEnv:
    """Build one task's simulator, its scene drawn from `seed` rather than from MetaWorld's fixed list."""
    benchmark = _benchmark(task)
    env = benchmark.train_classes[task]()
    env.set_task(benchmark.train_tasks[0])
    env._freeze_rand_vec = False
    env.seeded_rand_vec = True
    env.seed(seed)
    model = env.model
    model.camera("corner2").pos = [0.75, 0.075, 0.7]  # nearer to the table, as is usual for learned policies
    # Software rendering is ten times faster without multisampling and shadows.
    model.vis.quality.offsamples = 0
    model.vis.quality.shadowsize = 1
    model.vis.global_.offwidth, model.vis.global_.offheight = WIDTH, HEIGHT
    return env


@contextmanager
def rendering(env: metaworld.SawyerXYZEnv) -> Generator[mujoco.Renderer]:
    with mujoco.Renderer(env.model, HEIGHT, WIDTH) as renderer:
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        yield renderer


def render(renderer: mujoco.Renderer, data: mujoco.MjData) -> dict[str, NDArray[np.uint8]]:
    """Render both cameras, upright: MetaWorld mounts `corner2` upside down."""
    frames = {}
    for camera in CAMERAS:
        renderer.update_scene(data, camera=camera)
        frames[camera] = renderer.render()
    frames["corner2"] = frames["corner2"][::-1, ::-1]
    return frames


def act(expert: Policy, observation: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.clip(expert.get_action(observation), -1, 1).astype(np.float32)


def look_ahead(
    env: metaworld.SawyerXYZEnv, expert: Policy, observation: NDArray[np.float64], steps: int
) -> NDArray[np.float32]:
    """The expert's next actions; the simulator is left as it was."""
    physics = np.empty(mujoco.mj_stateSize(env.model, mujoco.mjtState.mjSTATE_INTEGRATION))
    mujoco.mj_getState(env.model, env.data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)
    kept = {name: getattr(env, name) for name in ("_prev_obs", "_last_stable_obs", "curr_path_length")}
    actions = []
    for _ in range(steps):
        actions.append(act(expert, observation))
        observation, *_ = env.step(actions[-1])
    mujoco.mj_setState(env.model, env.data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)
    mujoco.mj_forward(env.model, env.data)
    mujoco.mj_setState(env.model, env.data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)  # its warm start
    vars(env).update(kept)
    return np.stack(actions)


class Simulator:
    """One task of the only suite. Scenes are seeds."""

    def __init__(self, suite: str, task: str) -> None:
        warnings.filterwarnings("ignore", message="Constant")  # the experts' gains exceed the action range
        self._task, (self._prompt, expert) = task, TASKS[task]
        self._expert = expert()
        self._closing = ExitStack()
        # The meshes and textures are those of every scene, and uploading them takes longer than an episode.
        self._renderer = self._closing.enter_context(rendering(make_env(task, 0)))

    @staticmethod
    def prompts(suite: str) -> dict[str, str]:
        return {task: prompt for task, (prompt, _) in TASKS.items()}

    def reset(self, scene: int) -> Observation:
        self._env = make_env(self._task, scene)
        self._seen, _ = self._env.reset()
        return self._observe()

    def execute(self, actions: NDArray[np.float32]) -> Outcome:
        before = self._frames["corner2"]
        for steps, action in enumerate(actions, 1):
            self._seen, _, _, _, info = self._env.step(np.clip(action, -1, 1))
            if info["success"]:
                return Outcome(None, True, steps, [before])
        return Outcome(self._observe(), False, len(actions), [before])

    def expert(self) -> NDArray[np.float32]:
        return look_ahead(self._env, self._expert, self._seen, AHEAD)

    def close(self) -> None:
        self._closing.close()

    def _observe(self) -> Observation:
        self._frames = render(self._renderer, self._env.data)
        images = {f"observation/{camera}": frame for camera, frame in self._frames.items()}
        return {
            **images,
            "observation/state": self._seen[:STATE_DIMS].astype(np.float32),
            "prompt": self._prompt,
        }
