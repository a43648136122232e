"""A policy that solves the fake simulator from what it sees and hears, behind the real server."""

import json
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.stage import run_stage
from pi05_runtime.errors import EngineError
from pi05_runtime.geometry import PI05
from pi05_runtime.interface import Interface, Normalization, Statistics
from pi05_runtime.serve.keys import Keys
from pi05_runtime.serve.server import PolicyServer
from tests.runtime.serve.serving import HOST, in_a_thread
from validate.closed_loop import __main__
from validate.closed_loop.policies import InProcess
from validate.closed_loop.suites import SUITES, Suite

SIMULATOR = "tests.validate.closed_loop.fake_simulator"
SUITE = Suite(SIMULATOR, ("left", "right"), episodes=6, max_steps=20, executed=4)
HORIZON = 5
NORMALIZATION = Normalization("quantile", "quantile", Statistics(), Statistics(), "openpi")
INTERFACE = Interface(("front", "wrist"), "state", 4, 2, HORIZON, 64, "openpi", NORMALIZATION)
TIMES = {"seconds": 0.0, "decision_ms": ()}
"""What two equal episodes differ in."""

Decide = Callable[[Mapping[str, Any]], NDArray[np.float32]]


def decide(observation: Mapping[str, Any], error: float = 0) -> NDArray[np.float32]:
    """Half of the way, the noise, and what the wrist sees."""
    front, wrist = (float(observation["images"][camera].mean()) / 255 for camera in INTERFACE.cameras)
    side = 1 if observation["prompt"] == "go right" else -1
    way = (side * front - observation["state"][0]) / 2 + error + 0.001 * observation["noise"][:HORIZON, 0]
    return np.stack([way, np.full(HORIZON, wrist)], 1).astype(np.float32)


class FakePolicy:
    """What a server needs of a policy."""

    recipes, steps = frozenset({"bf16"}), 10

    def __init__(
        self,
        decide: Decide = decide,
        version: str = "1",
        interface: Interface = INTERFACE,
        manifest: str = "0" * 64,
    ) -> None:
        """manifest: its hash."""
        self._decide = decide
        self.identity = {"manifest": manifest, "target": "none"}
        self.asked: list[Mapping[str, Any]] = []
        self.manifest = SimpleNamespace(name="fake", version=version, interface=interface, geometry=PI05)

    def infer(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        self.asked.append(observation)
        return {"actions": self._decide(observation), "timings": {}}

    def keys(self) -> Keys:
        return Keys(self.manifest.interface)

    def in_process(self) -> InProcess:
        return InProcess(self, self.keys())


@contextmanager
def served(policy: FakePolicy) -> Generator[str]:
    """The address."""
    with in_a_thread(PolicyServer(policy, policy.keys(), 60_000)) as port:  # type: ignore[arg-type]
        yield f"ws://{HOST}:{port}"


def off_by(error: float) -> Decide:
    return lambda observation: decide(observation, error)


def failing(observation: Mapping[str, Any]) -> NDArray[np.float32]:
    raise EngineError("actions: NaN found, finite numbers expected")


def command(out: Path, *arguments: object) -> None:
    """`python -m validate.closed_loop`, in this process, in the fake simulator."""
    SUITES["fake"] = SUITE
    try:
        flags = ("--suite", "fake", "--simulator", sys.executable, *arguments)
        __main__.main(str(out), *map(str, flags))
    finally:
        del SUITES["fake"]


def episodes(out: Path) -> dict[str, Any]:
    """File -> episode, without its times."""
    files = sorted((out / "episodes").rglob("*.json"))
    return {str(file.relative_to(out)): json.loads(file.read_bytes()) | TIMES for file in files}


if __name__ == "__main__":
    run_stage(lambda out, *arguments: command(Path(out), *arguments))
