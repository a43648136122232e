"""MetaWorld itself, where `make simulator` has made its environment."""

import json
from collections.abc import Iterator
from contextlib import chdir, closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.artifacts import read_json
from export.gates import METRICS, Acted, require_acted
from export.params import load_params
from tests.pipeline import ROOT, TARGET, change_params, run_stage
from validate.closed_loop import __main__
from validate.closed_loop.records import ClosedLoopError
from validate.closed_loop.simulator import SimulatorProcess

PYTHON = ROOT / __main__.SIMULATOR
RECORDED = ROOT / "demo" / "observations"
CAMERAS = ("corner2", "gripperPOV")

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="no simulator's environment: make simulator")


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    with closing(SimulatorProcess(PYTHON, "metaworld")) as process:
        yield process


def test_the_expert_solves_every_task(tmp_path: Path):
    __main__.main(
        str(tmp_path),
        "--suite",
        "metaworld",
        "--simulator",
        str(PYTHON),
        "--policy",
        "expert",
        "--scenes",
        "1",
    )
    found = [json.loads(file.read_bytes()) for file in tmp_path.rglob("expert.json")]
    assert len(found) == 4 and all(episode["success"] for episode in found)


def test_the_demo_passes_the_gate_and_no_mutant_does(copied_workspace: Path):
    """Quantized as it comes, in scenes that it has never seen."""
    change_params(
        copied_workspace,
        gates__closed_loop__targets=[TARGET],
        gates__closed_loop__simulator=str(PYTHON),
        gates__closed_loop__tasks=["drawer-open-v3", "button-press-topdown-v3"],
        gates__closed_loop__scenes=2,
    )
    run_stage(copied_workspace, "validate.closed_loop.gate", TARGET)
    with chdir(copied_workspace):
        found = require_acted(load_params(), TARGET)
        acted = read_json(METRICS / TARGET / "closed_loop.json", Acted)
    assert found.successes == found.scenes == 4
    assert all(mutant.successes == 0 for mutant in acted.mutants.values())


def test_a_scene_is_the_same_whatever_ran_before(simulator: SimulatorProcess):
    def seen() -> list[np.ndarray]:
        first = simulator.reset(50_000)
        after = simulator.execute(simulator.expert()).observation
        assert after is not None
        return [np.asarray(shown[key]) for shown in (first, after) for key in shown]

    simulator.open("metaworld", "push-v3")
    before = seen()
    simulator.reset(50_001)
    simulator.execute(np.ones((20, 4), np.float32))
    assert all(np.array_equal(*pair) for pair in zip(before, seen(), strict=True))


@pytest.mark.parametrize("step", [11, 33, 55])
def test_it_shows_what_the_demo_has_recorded(simulator: SimulatorProcess, step: int):
    lines = (RECORDED / "index.jsonl").read_text().splitlines()
    task, episode = "drawer-open-v3", 10_000
    wanted = (task, episode, step)
    (record,) = [r for r in map(json.loads, lines) if (r["task"], r["episode"], r["step"]) == wanted]
    simulator.open("metaworld", task)
    seen = simulator.reset(episode)
    for left in range(step, 0, -5):
        outcome = simulator.execute(simulator.expert()[:left])
        assert outcome.observation is not None
        seen = outcome.observation
    assert seen["prompt"] == record["prompt"]
    assert np.allclose(np.asarray(seen["observation/state"]), record["state"], atol=1e-5)
    for camera in CAMERAS:
        with Image.open(RECORDED / record["images"][camera]) as image:
            off = np.abs(np.asarray(image, np.int16) - np.asarray(seen[f"observation/{camera}"]))
        assert off.mean() < 0.5  # another GL driver may shift single pixels


def test_a_machine_without_a_gl_driver(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("__EGL_VENDOR_LIBRARY_DIRS", "/nowhere")
    monkeypatch.setenv("__EGL_VENDOR_LIBRARY_FILENAMES", "/nowhere")
    with (
        closing(SimulatorProcess(PYTHON, "metaworld")) as process,
        pytest.raises(ClosedLoopError, match="mend its environment"),
    ):
        process.open("metaworld", "reach-v3")
