"""LIBERO itself, where `make libero` has made its environment."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from tests.pipeline import ROOT
from validate.closed_loop import __main__
from validate.closed_loop.records import ClosedLoopError
from validate.closed_loop.simulator import SimulatorProcess
from validate.closed_loop.simulators import Observation
from validate.closed_loop.simulators.libero_observation import observation
from validate.closed_loop.suites import SUITES

PYTHON = ROOT / "artifacts" / "libero" / "bin" / "python"
AS_OPENPI = Path(__file__).with_name("libero_as_openpi.py")
SUITE, TASK, SCENE = "libero_spatial", "4", 1
"""The drawer of this task is open, for which LIBERO draws one number more at every reset."""
PROMPT = "pick up the black bowl in the top drawer of the wooden cabinet and place it on the plate"
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (2, 5, 7)).astype(np.float32)

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="no LIBERO: make libero")


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    with closing(SimulatorProcess(PYTHON, "libero")) as process:
        yield process


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[Observation]:
    """Before each chunk of ACTIONS, and after the last one."""
    folder = tmp_path_factory.mktemp("libero")
    actions, out = folder / "actions.npy", folder / "seen.npz"
    np.save(actions, ACTIONS)
    command = (PYTHON, AS_OPENPI, SUITE, TASK, str(SCENE), actions, out)
    subprocess.run(command, check=True, timeout=1200, capture_output=True)
    with np.load(out) as sensors:
        seen = dict(sensors)
    return [
        observation({name: values[index] for name, values in seen.items()}, PROMPT)
        for index in range(len(ACTIONS) + 1)
    ]


def act(simulator: SimulatorProcess, scene: int) -> list[Observation]:
    seen = [simulator.reset(scene)]
    for chunk in ACTIONS:
        outcome = simulator.execute(chunk)
        assert outcome.observation is not None and not outcome.success and outcome.steps == len(chunk)
        seen.append(outcome.observation)
    return seen


def differences(found: list[Observation], expected: list[Observation]) -> list[str]:
    return [
        f"{index}: {key}"
        for index, (one, other) in enumerate(zip(found, expected, strict=True))
        for key in one.keys() | other.keys()
        if not np.array_equal(one[key], other[key])
    ]


def test_a_scene_run_alone_is_that_of_openpis_order_to_the_bit(
    simulator: SimulatorProcess, expected: list[Observation]
):
    simulator.open(SUITE, TASK)
    assert not differences(act(simulator, SCENE), expected)


def test_a_scene_is_the_same_whatever_ran_before(simulator: SimulatorProcess, expected: list[Observation]):
    simulator.open(SUITE, TASK)
    other = act(simulator, SCENE + 1)
    assert differences(other, expected)
    assert not differences(act(simulator, SCENE), expected)


def test_asking_the_expert_leaves_no_trace(simulator: SimulatorProcess, expected: list[Observation]):
    simulator.open(SUITE, TASK)
    found = [simulator.reset(SCENE)]
    for chunk in ACTIONS:
        advice = simulator.expert()
        np.testing.assert_array_equal(simulator.expert(), advice)
        after = simulator.execute(chunk).observation
        assert after is not None
        found.append(after)
    assert not differences(found, expected)


def test_the_expert_carries_the_bowl_to_the_plate(tmp_path: Path):
    command = (str(tmp_path), "--suite", SUITE, "--task", "0", "--scenes", "1", "--policy", "expert")
    __main__.main(*command, "--simulator", str(PYTHON))
    (episode,) = (json.loads(file.read_bytes()) for file in tmp_path.rglob("expert.json"))
    assert episode["success"] and episode["steps"] < SUITES[SUITE].max_steps


def test_a_suite_without_an_expert_says_so(simulator: SimulatorProcess):
    simulator.open("libero_goal", "7")
    assert simulator.reset(0)["prompt"] == "turn on the stove"
    with pytest.raises(ClosedLoopError, match="it has no expert"):
        simulator.expert()


@pytest.mark.parametrize("suite", [name for name, suite in SUITES.items() if suite.simulator == "libero"])
def test_every_task_of_a_suite_has_a_prompt(simulator: SimulatorProcess, suite: str):
    assert tuple(simulator.prompts(suite)) == SUITES[suite].tasks
