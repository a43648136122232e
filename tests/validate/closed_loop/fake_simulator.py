"""A simulator of a point on a line, for tests: the prompt says which side, the front camera how far.

What goes wrong in it is said by the environment, SIMULATOR_FAULT=WHERE:SCENE. With SIMULATOR_SECONDS each
chunk takes so long, and SIMULATOR_PROCESSES is a folder to which it writes its process."""

import os
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from validate.closed_loop.simulators import Observation, Outcome

PACKAGES = ("numpy",)
SIDES = {"left": -1, "right": 1}
NEAR = 0.04
SPEED = 0.1
SIZE = 8, 6


class Simulator:
    def __init__(self, suite: str, task: str) -> None:
        self._task, self._fault = task, os.environ.get("SIMULATOR_FAULT", ":").split(":")
        if self._fault[0] == "init":
            raise OSError("no display")
        if folder := os.environ.get("SIMULATOR_PROCESSES"):
            Path(folder, str(os.getpid())).touch()

    @staticmethod
    def prompts(suite: str) -> dict[str, str]:
        return {side: f"go {side}" for side in SIDES}

    def reset(self, scene: int) -> Observation:
        self._scene, self._position = scene, 0.0
        self._distance = 0.6 + 0.05 * scene
        self._happens("reset")
        return self._observe()

    def execute(self, actions: NDArray[np.float32]) -> Outcome:
        self._happens("execute")
        time.sleep(float(os.environ.get("SIMULATOR_SECONDS", "0")))
        frame = self._front()
        for steps, action in enumerate(actions, 1):
            self._position += float(np.clip(action[0], -SPEED, SPEED))
            if abs(self._position - self._goal()) < NEAR:
                return Outcome(None, True, steps, [frame])
        return Outcome(self._observe(), False, len(actions), [frame])

    def expert(self) -> NDArray[np.float32]:
        if self._fault[0] == "expert":
            raise NotImplementedError
        return np.array([[self._goal() - self._position, 0]], np.float32)

    def close(self) -> None: ...

    def _goal(self) -> float:
        return SIDES[self._task] * self._distance

    def _front(self) -> NDArray[np.uint8]:
        return np.full((*SIZE, 3), round(self._distance * 255), np.uint8)

    def _observe(self) -> Observation:
        return {
            "observation/front": self._front(),
            "observation/wrist": np.full((*SIZE, 3), 40, np.uint8),
            "observation/state": np.array([self._position, 0, 0, 0], np.float32),
            "prompt": f"go {self._task}",
        }

    def _happens(self, where: str) -> None:
        if self._fault == [where, str(self._scene)]:
            raise ValueError(f"the line is broken in scene {self._scene}")
        if self._fault == [f"die-{where}", str(self._scene)]:
            print("the line has crashed", flush=True)
            os._exit(11)
