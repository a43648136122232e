"""What the LIBERO policy learns from, recorded in a simulator that is a number: no LIBERO is needed."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from demo import libero_demonstrations
from demo.decisions import HORIZON, Decisions, disturbances
from demo.lessons import read_demonstrations
from demo.libero_demonstrations import CAMERAS, DISTURBANCE, SUITE, main, record_episode
from pi05_runtime.errors import ParamsError
from validate.closed_loop.records import ClosedLoopError
from validate.closed_loop.simulators import Observation, Outcome
from validate.closed_loop.suites import SUITES

PLAN = np.tile(np.float32(0.5), (HORIZON, 7))
EXECUTED = SUITES[SUITE].executed


class Fake:
    """The state counts the steps. Even scenes end after 12 of them, odd ones never."""

    def __init__(self, *_: object) -> None:
        self.acted: list[NDArray[np.float32]] = []

    def prompts(self, suite: str) -> dict[str, str]:
        return {"2": "pick up the bowl"}

    def open(self, suite: str, task: str) -> None: ...

    def close(self) -> None: ...

    def reset(self, scene: int) -> Observation:
        self._steps, self._ends = 0, 12 if scene % 2 == 0 else 10**6
        return self._observe()

    def expert(self) -> NDArray[np.float32]:
        return PLAN + np.float32(self._steps / 1000)

    def execute(self, actions: NDArray[np.float32]) -> Outcome:
        self.acted.append(actions)
        steps = min(len(actions), self._ends - self._steps)
        self._steps += steps
        success = self._steps == self._ends
        return Outcome(None if success else self._observe(), success, steps, [])

    def _observe(self) -> Observation:
        frames = {f"observation/{camera}": np.full((224, 224, 3), 50, np.uint8) for camera in CAMERAS}
        return {**frames, "observation/state": np.full(8, self._steps, np.float32), "prompt": "pick it up"}


def record(folder: Path) -> None:
    main(str(folder), "--first", "10", "--episodes", "4", "--simulator", "python")


@pytest.fixture(autouse=True)
def fake_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libero_demonstrations, "SimulatorProcess", Fake)


def test_the_experts_chunk_is_recorded_and_another_one_acted():
    simulator = Fake()
    decisions = record_episode(simulator, 2)
    assert decisions is not None and [state[0] for state in decisions.states] == [0, 5, 10]
    for chunk, state in zip(decisions.chunks, decisions.states, strict=True):
        np.testing.assert_array_equal(chunk, PLAN + np.float32(state[0] / 1000))
    assert [len(actions) for actions in simulator.acted] == [EXECUTED] * 3
    offsets = np.concatenate(simulator.acted) - np.repeat([c[0] for c in decisions.chunks], EXECUTED, 0)
    expected = [offset.copy() for offset in islice(disturbances(2, DISTURBANCE, 7), 3 * EXECUTED)]
    np.testing.assert_allclose(offsets, expected, atol=1e-6)
    assert offsets[:, :3].all() and not offsets[:, 3:].any()


def test_the_experts_failures_are_left_out(tmp_path: Path):
    record(tmp_path)
    read = read_demonstrations(tmp_path)
    assert np.unique(read.episodes).tolist() == [10, 12]
    assert (read.suite, read.cameras, read.prompts[0]) == (SUITE, CAMERAS, "pick up the bowl")
    assert read.pictures.shape == (6, 2, 112, 112, 3) and abs(read.pictures.astype(int) - 50).max() <= 2


def test_demonstrations_of_two_robots_are_no_lesson(tmp_path: Path):
    record(tmp_path)
    state, chunk = np.zeros(4, np.float32), np.zeros((HORIZON, 4), np.float32)
    other = Decisions([1], [state], [chunk], [b"", b""])
    other.save(tmp_path / "reach.npz", "metaworld", ("corner2", "gripperPOV"), "reach")
    with pytest.raises(ParamsError, match=r"wrist_image.*corner2"):
        read_demonstrations(tmp_path)


@pytest.mark.parametrize("spoil", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"no"])
def test_what_is_no_recording_is_named(tmp_path: Path, spoil: Callable[[bytes], bytes]):
    record(tmp_path)
    (file,) = tmp_path.glob("*")
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(ParamsError, match=rf"{file.name}.*record it again"):
        read_demonstrations(tmp_path)


def test_a_recording_of_before_there_were_suites(tmp_path: Path):
    np.savez(tmp_path / "push-v3.npz", prompt=np.array("push"), episodes=np.zeros(1, np.int32))
    with pytest.raises(ParamsError, match=r"push-v3\.npz.*suite.*record it again"):
        read_demonstrations(tmp_path)


def test_an_expert_that_never_succeeds_leaves_nothing(tmp_path: Path):
    with pytest.raises(ClosedLoopError, match="none of 1 episodes"):
        main(str(tmp_path), "--first", "11", "--episodes", "1", "--simulator", "python")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        record(tmp_path)
    assert not list(tmp_path.iterdir())
