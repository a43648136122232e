"""Engines that act badly are in no bundle, and neither are any that nothing was found out about."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from export.artifacts import BUNDLE, engine_folder, write_json
from export.engine import RECORD, EngineRecord
from export.engine.judge import open_judged
from export.gates import METRICS, MUTANTS, Acted, require_acted, shortfalls
from export.observations import Observations, seeded_noise
from export.params import load_params
from pi05_runtime.errors import GateError, ObservationError, ParamsError
from pi05_runtime.lock import Lock
from pi05_runtime.manifest import ClosedLoop
from pi05_runtime.policy import Policy
from tests.pipeline import TARGET, change_params
from tests.validate.closed_loop.fake_policy import SUITE, Decide, FakePolicy, decide, failing, off_by
from validate.closed_loop import gate
from validate.closed_loop.records import ClosedLoopError
from validate.closed_loop.suites import SUITES

RESULT = METRICS / TARGET / "closed_loop.json"
FOLDER = gate.FOLDER / TARGET
ASKED = {
    "targets": [TARGET],
    "simulator": sys.executable,
    "map": [],
    "suite": "fake",
    "tasks": ["left", "right"],
    "scenes": 4,
    "success": 0.9,
    "loss": 0.1,
    "divergence": 0.05,
}


@pytest.fixture
def pipeline(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with params and records of engines, and nothing else; what acts is fake."""
    lock = Lock("onnxruntime", "1", None)
    for component, recipe in (("vision", "bf16"), ("prefill", "fp8"), ("denoise", "fp8")):
        record = EngineRecord("fp32.onnx", "", "onnx", {component: recipe}, (), lock)
        write_json(tmp_path / engine_folder(TARGET, component) / RECORD, record)
    shutil.copy(root / "params.yaml", tmp_path)
    change_params(tmp_path, gates__closed_loop=ASKED)
    monkeypatch.setitem(SUITES, "fake", SUITE)
    monkeypatch.setattr(gate, "open_judged", lambda *_: (SimpleNamespace(close=lambda: None), "engine"))
    monkeypatch.setattr(gate, "ReferencePolicy", lambda params: FakePolicy())
    act_as(monkeypatch, off_by(0.001))
    with chdir(tmp_path):
        yield tmp_path


FOUND = ClosedLoop("fake", ("left", "right"), 8, 8, 0, 0, 0.0005, "engine", 0.9, 0.1, 0.05)
SPOILED = replace(FOUND, successes=0, lost=8, divergence=0.3)


@pytest.fixture
def passed(pipeline: Path) -> Path:
    """With the result of a gate that passed."""
    recipes = {"vision": "bf16", "prefill": "fp8", "denoise": "fp8"}
    write_json(RESULT, Acted(recipes, FOUND, dict.fromkeys(MUTANTS, SPOILED)))
    assert require_acted(load_params(), TARGET) == FOUND
    return pipeline


def act_as(monkeypatch: pytest.MonkeyPatch, engines: Decide) -> None:
    monkeypatch.setattr(gate, "Candidate", lambda params, engine: FakePolicy(engines))


def ask(folder: Path, **change: Any) -> None:
    change_params(folder, **{f"gates__closed_loop__{name}": value for name, value in change.items()})


def test_engines_that_act_as_the_reference_does_pass(
    pipeline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gate.main(TARGET)
    found = require_acted(load_params(), TARGET)
    # Of two dimensions, one is off.
    assert replace(found, divergence=0.0005) == FOUND and found.divergence == pytest.approx(0.0005, abs=1e-6)
    out = capsys.readouterr().out
    assert "| fake | all | engines | 8/8 |" in out and "| fake | all | engines+black-images | 0/8 |" in out
    assert {"results.json", "run.json", "episodes"} <= {path.name for path in FOLDER.iterdir()}


def test_engines_that_fail_are_refused_and_can_be_read(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do not move where the goal is far: in two of the four scenes of each task."""

    def lazy(observation: Mapping[str, Any]) -> NDArray[np.float32]:
        return decide(observation) * (observation["images"]["front"].mean() < 0.67 * 255)

    act_as(monkeypatch, lazy)
    message = (
        r"success 50\.0% found, at least 90\.0% expected; 50\.0% of scenes lost to the reference found, at "
        r"most 10\.0% expected"
    )
    with pytest.raises(GateError, match=message):
        gate.main(TARGET)
    acted = json.loads(RESULT.read_bytes())
    assert acted["found"]["lost"] == 4 and acted["mutants"].keys() == set(MUTANTS)
    assert (FOLDER / "results.json").is_file()


def test_success_does_not_excuse_divergence(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    act_as(monkeypatch, off_by(0.02))
    ask(pipeline, divergence=0.009)
    with pytest.raises(GateError, match=r"json: divergence 0\.01 found, at most 0\.009 expected$"):
        gate.main(TARGET)


def deaf(observation: Mapping[str, Any]) -> NDArray[np.float32]:
    """It goes where it went before, or to the right."""
    right = observation["state"][0] >= 0
    return decide({**observation, "prompt": "go right" if right else "go left"})


def blind(observation: Mapping[str, Any]) -> NDArray[np.float32]:
    black = {camera: np.full_like(image, 170) for camera, image in observation["images"].items()}
    return decide({**observation, "images": black})


@pytest.mark.parametrize(("engines", "mutant"), [(deaf, "wrong-prompt"), (blind, "black-images")])
def test_a_gate_whose_mutant_passes_is_refused(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch, engines: Decide, mutant: str
) -> None:
    """What spoils nothing is not told from what is right, so that passing says nothing."""
    act_as(monkeypatch, engines)
    monkeypatch.setattr(gate, "ReferencePolicy", lambda params: FakePolicy(engines))
    ask(pipeline, success=0.1)
    with pytest.raises(GateError, match=rf"the mutants \['{mutant}'\] passed, all of .* expected to fail"):
        gate.main(TARGET)


def hesitating(observation: Mapping[str, Any]) -> NDArray[np.float32]:
    return failing(observation) if abs(observation["state"][0]) > 0.5 else decide(observation)


@pytest.mark.parametrize(("engines", "answers"), [(failing, "0"), (hesitating, r"[1-9]\d*")])
def test_engines_that_refuse_an_observation_are_refused(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch, engines: Decide, answers: str
) -> None:
    act_as(monkeypatch, engines)
    with pytest.raises(GateError, match=rf": {answers} answers found, \d+ expected, one for each decision"):
        gate.main(TARGET)
    assert not RESULT.exists()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"simulator": "no/such/python"}, ClosedLoopError, "no/such/python cannot be run"),
        ({"suite": "maze"}, ParamsError, r"gates\.closed_loop\.suite: 'maze' found, one of"),
        ({"tasks": ["left", "up"]}, ParamsError, r"gates\.closed_loop\.tasks: \['up'\] found"),
        ({"scenes": 7}, ParamsError, r"gates\.closed_loop\.scenes: 7 found, at most 6"),
        ({"map": ["front=observation/over-there"]}, ObservationError, r"missing \['front'\]"),
    ],
)
def test_a_gate_that_cannot_run_has_failed(
    passed: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    """A result of before does not stand for it."""
    ask(passed, **change)
    with pytest.raises(error, match=message):
        gate.main(TARGET)
    assert not RESULT.exists()
    with pytest.raises(GateError, match=r"no gate result: .*closed_loop\.json"):
        require_acted(load_params(), TARGET)


def test_a_simulator_that_dies_leaves_nothing(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMULATOR_FAULT", "die-execute:2")
    with pytest.raises(ClosedLoopError, match="the line has crashed"):
        gate.main(TARGET)
    assert not RESULT.exists() and not list(gate.FOLDER.iterdir())


def test_a_scene_that_the_simulator_cannot_make_is_a_failure(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all policies alike: 6 of 8 are less than asked for, and nothing is left out."""
    monkeypatch.setenv("SIMULATOR_FAULT", "reset:2")
    with pytest.raises(GateError, match=r"success 75\.0% found, at least 90\.0% expected$"):
        gate.main(TARGET)


@pytest.mark.parametrize(
    "change",
    [{"scenes": 3}, {"success": 0.85}, {"loss": 0.2}, {"divergence": 0.1}, {"tasks": ["left"]}],
)
def test_a_result_for_other_params_does_not_count(passed: Path, change: dict[str, Any]) -> None:
    ask(passed, **change)
    with pytest.raises(GateError, match=r"params\.yaml says"):
        require_acted(load_params(), TARGET)


def test_a_result_of_other_engines_does_not_count(passed: Path) -> None:
    record = EngineRecord("fp32.onnx", "", "onnx", {"prefill": "int8"}, (), Lock("onnxruntime", "1", None))
    write_json(engine_folder(TARGET, "prefill") / RECORD, record)
    with pytest.raises(GateError, match=r"params\.yaml says"):
        require_acted(load_params(), TARGET)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda acted: acted["found"].update(divergence=None), "no gate result"),
        (lambda acted: acted["found"].update(successes=7), r"success 87\.5% found"),
        (lambda acted: acted["mutants"].pop("wrong-prompt"), "mutants .* found"),
        (lambda acted: acted["mutants"]["wrong-prompt"].update(acted["found"]), "passed"),
        (lambda acted: acted["found"].update(least_success=0.1), r"params\.yaml says"),
    ],
    ids=["NaN", "too few", "no mutant", "a mutant that passes", "another threshold"],
)
def test_what_is_read_is_judged_again(
    passed: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    acted = json.loads(RESULT.read_bytes())
    edit(acted)
    RESULT.write_text(json.dumps(acted))
    with pytest.raises(GateError, match=message):
        require_acted(load_params(), TARGET)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"scenes": 20, "successes": 11, "least_success": 0.55}, []),
        ({"successes": 7, "least_success": 0.875}, []),
        ({"successes": 7}, ["success 87.5% found, at least 90.0% expected"]),
        ({"lost": 3, "won": 2, "largest_loss": 0.125}, []),
        ({"lost": 2}, ["25.0% of scenes lost to the reference found, at most 10.0% expected"]),
        ({"divergence": 0.05}, []),
        ({"divergence": 0.0501}, ["divergence 0.0501 found, at most 0.05 expected"]),
        ({"divergence": float("nan")}, ["divergence nan found, at most 0.05 expected"]),
    ],
)
def test_a_threshold_is_met_at_itself(change: dict[str, Any], told: list[str]) -> None:
    assert shortfalls(replace(FOUND, **change)) == told


def test_what_acts_is_what_a_robot_would_load(workspace: Path) -> None:
    """The engines before they are bundled, and the bundle made of them: the same actions, bit for bit."""
    with chdir(workspace):
        params = load_params()
        noise = seeded_noise(3)
        engine, _ = open_judged(TARGET, params.networks(TARGET))
        with closing(engine), Policy.load(BUNDLE, TARGET) as policy:
            candidate = gate.Candidate(params, engine)
            for observation in map(Observations(params.heldout).__getitem__, range(2)):
                seen = {**observation, "noise": noise}
                assert np.array_equal(candidate.infer(seen)["actions"], policy.infer(seen)["actions"])
