"""One scene, acted by every policy: the reference first, and each other one asked wherever it decided.

Pairs are what make a few dozen scenes say something: the same scene and, for decision k of every policy, the
same flow noise. Two policies then differ by what they are. Once they have acted differently they see
different things, so how far apart they are is measured on the observations of the reference's own episode.
"""

import hashlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from export.stage import progress
from validate.closed_loop.cameras import check_cameras
from validate.closed_loop.policies import Acts, Refused
from validate.closed_loop.records import ClosedLoopError, Episode, Scene, Store
from validate.closed_loop.simulator import SimulatorFault, SimulatorProcess
from validate.closed_loop.simulators import Observation
from validate.closed_loop.suites import SUITES, Suite

Actions = NDArray[np.float32]
Frames = list[NDArray[np.uint8]]
Watch = Callable[[Observation, int, Actions], None]
"""Called with what a policy sees, the number of its decision and its actions, before they are executed."""


class Expert:
    """The simulator's scripted expert, which sees what no robot does, in the place of a policy."""

    noise_shape = None

    def __init__(self, simulator: SimulatorProcess) -> None:
        self._simulator = simulator

    def infer(self, observation: Mapping[str, Any]) -> Actions:
        return self._simulator.expert()


class Station:
    """One simulator, and the policies that act in it."""

    def __init__(
        self,
        simulator: SimulatorProcess,
        suite: Suite,
        policies: Mapping[str, Acts],
        reference: str | None,
    ) -> None:
        """Errors: ClosedLoopError for policies that cannot be given the same noise."""
        self._simulator, self._suite = simulator, suite
        self._policies, self._reference = policies, reference
        self._cameras_checked = reference is None
        shapes = {name: policy.noise_shape for name, policy in policies.items() if policy.noise_shape}
        if len(set(shapes.values())) > 1:
            raise ClosedLoopError(f"noise of one shape expected for all policies, found {shapes}")

    def run(self, scene: Scene, wanted: Collection[str]) -> Iterator[tuple[Episode, Frames]]:
        """The episodes of the wanted policies, the reference's first. Where another one is wanted and the
        reference's is there already, it is acted again, for what is seen in it. Errors: Pi05Error."""
        asked = [name for name in self._policies if name in wanted and name != self._reference]
        comparison = None
        if self._reference is not None and (asked or self._reference in wanted):
            if not self._cameras_checked:
                self._check_cameras(scene)
            compared = {name: self._policies[name] for name in asked if not self._is_expert(name)}
            comparison = Comparison(scene, self._suite.executed, compared)
            episode, frames = self._act(scene, self._reference, comparison.watch)
            if self._reference in wanted:
                yield episode, frames
        for name in asked:
            if comparison is None or self._is_expert(name):
                yield self._act(scene, name)
                continue
            if (refusal := comparison.refusals.get(name)) is not None:
                episode, frames = _refused(scene, name, refusal), []
            else:
                episode, frames = self._act(scene, name)
            yield replace(episode, divergence=tuple(comparison.divergence[name])), frames

    def _is_expert(self, name: str) -> bool:
        return isinstance(self._policies[name], Expert)

    def _check_cameras(self, scene: Scene) -> None:
        self._simulator.open(scene.suite, scene.task)
        try:
            seen = self._simulator.reset(scene.number)
        except SimulatorFault:
            return  # another scene will do
        assert self._reference is not None
        reference = self._policies[self._reference]
        seen = with_noise(seen, scene, 0, reference)
        for name, policy in self._policies.items():
            if name != self._reference and not self._is_expert(name) and policy.noise_shape:
                check_cameras(name, policy, reference, seen)
        self._cameras_checked = True

    def _act(self, scene: Scene, name: str, watch: Watch | None = None) -> tuple[Episode, Frames]:
        suite, policy, simulator = self._suite, self._policies[name], self._simulator
        start, milliseconds, frames = time.perf_counter(), list[float](), Frames()
        steps, success, error = 0, False, None
        simulator.open(scene.suite, scene.task)
        try:
            observation: Observation | None = simulator.reset(scene.number)
            while observation is not None and steps < suite.max_steps:
                seen = with_noise(observation, scene, len(milliseconds), policy)
                before = time.perf_counter()
                actions = policy.infer(seen)
                milliseconds.append((time.perf_counter() - before) * 1e3)
                if watch is not None:
                    watch(observation, len(milliseconds) - 1, actions)
                outcome = simulator.execute(actions[: min(suite.executed, suite.max_steps - steps)])
                observation, success = outcome.observation, outcome.success
                steps += outcome.steps
                frames += outcome.frames
        except (SimulatorFault, Refused) as fault:
            error = str(fault)
        return Episode(
            suite=scene.suite,
            task=scene.task,
            scene=scene.number,
            policy=name,
            success=success,
            steps=steps,
            error=error,
            seconds=time.perf_counter() - start,
            decision_ms=tuple(milliseconds),
            divergence=None,
            video=None,
        ), frames


class Comparison:
    """What other policies would have done in the reference's place. refusals: by policy, its first."""

    def __init__(self, scene: Scene, executed: int, policies: Mapping[str, Acts]) -> None:
        self._scene, self._executed, self._policies = scene, executed, policies
        self.divergence: dict[str, list[float]] = {name: [] for name in policies}
        self.refusals: dict[str, str] = {}

    def watch(self, observation: Observation, decision: int, actions: Actions) -> None:
        """Errors: ClosedLoopError for a policy of another robot."""
        expected = actions[: self._executed]
        for name in self._policies.keys() - self.refusals.keys():
            policy = self._policies[name]
            try:
                found = policy.infer(with_noise(observation, self._scene, decision, policy))[: self._executed]
            except Refused as refusal:
                self.refusals[name] = str(refusal)
                continue
            if found.shape != expected.shape:
                raise ClosedLoopError(
                    f"policy {name!r}: actions of shape {list(found.shape)} found, the reference's "
                    f"{list(expected.shape)} expected; compare policies of one robot"
                )
            self.divergence[name].append(float(np.abs(found - expected).mean()))


def flow_noise(scene: Scene, decision: int, shape: tuple[int, ...]) -> Actions:
    """The same for every policy, on every machine."""
    said = "/".join(map(str, (*scene, decision)))
    seed = int.from_bytes(hashlib.sha256(said.encode()).digest())
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def with_noise(observation: Observation, scene: Scene, decision: int, policy: Acts) -> Observation:
    """Unless the policy draws its own."""
    if policy.noise_shape is None:
        return observation
    return {**observation, "noise": flow_noise(scene, decision, policy.noise_shape)}


def run_scenes(
    store: Store,
    suite: str,
    tasks: Iterable[str],
    scenes: Iterable[int],
    policies: Mapping[str, Acts],
    reference: str | None,
    python: Path,
) -> None:
    """Runs what the store lacks, one scene after another, with policies of this process. `store` is held.
    Errors: Pi05Error."""
    places = [Scene(suite, task, number) for task in tasks for number in scenes]
    with closing(SimulatorProcess(python, SUITES[suite].simulator)) as simulator:
        station = Station(simulator, SUITES[suite], policies, reference)
        for scene in progress(places, desc="closed loop", unit="scene"):
            wanted = [name for name in policies if not store.has(scene, name)]
            for episode, frames in station.run(scene, wanted):
                store.put(episode, frames)


def _refused(scene: Scene, policy: str, refusal: str) -> Episode:
    return Episode(scene.suite, scene.task, scene.number, policy, False, 0, refusal, 0, (), None, None)
