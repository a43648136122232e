"""Gates fail closed: below a threshold, on NaN, and when they did not run."""

import shutil
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from export.artifacts import engine_folder, write_json
from export.checkpoint.canonical import read_description
from export.engine import RECORD, EngineRecord, decision_recipes, read_record
from export.gates import (
    METRICS,
    MUTANTS,
    Acted,
    Measured,
    Result,
    expectation,
    require_engine,
    require_passed,
)
from export.params import Params, load_params
from pi05_runtime.errors import EngineError, GateError
from pi05_runtime.lock import Lock
from pi05_runtime.manifest import ClosedLoop, read_manifest
from pi05_runtime.verify import hash_file
from tests.pipeline import TARGET, change_params, run_stage
from validate.metrics import Answers, judge

GOOD = Measured(0.9999, 0.99999, 0.01, 0.001)


@pytest.fixture
def params(root: Path) -> Params:
    return load_params(root / "params.yaml")


@pytest.fixture
def engines(tmp_path: Path) -> Path:
    """A folder with records of engines for the three components, and nothing else."""
    lock = Lock("onnxruntime", "1", None)
    for component, recipe in (("vision", "bf16"), ("prefill", "fp8"), ("denoise", "fp8")):
        record = EngineRecord("fp32.onnx", "", "onnx", {component: recipe}, (), lock)
        write_json(tmp_path / engine_folder(TARGET, component) / RECORD, record)
    return tmp_path


def write(params: Params, measured: dict[str, Measured], gate: str = "prefill") -> None:
    judge(params, TARGET, gate, "engine", 3, measured)


def test_a_gate_passes_at_its_threshold(engines: Path, params: Params):
    with chdir(engines):
        _, threshold = expectation(params, TARGET, "prefill")
        write(params, {"keys": msgspec.structs.replace(GOOD, cosine=threshold)})
        assert require_passed(params, TARGET, "prefill").passed


@pytest.mark.parametrize("cosine", [0.9899, float("nan"), -1.0])
def test_a_gate_below_its_threshold_fails_and_can_be_read(engines: Path, params: Params, cosine: float):
    bad = Measured(cosine, 0.99999, 0.2, 0.001)
    with chdir(engines):
        with pytest.raises(GateError, match=r"at least 0\.99 expected"):
            write(params, {"good": GOOD, "bad": bad})
        assert (METRICS / TARGET / "prefill.json").is_file()
        with pytest.raises(GateError):
            require_passed(params, TARGET, "prefill")


def test_a_gate_that_measured_nothing_fails(engines: Path, params: Params):
    with chdir(engines), pytest.raises(GateError):
        write(params, {})


def test_the_actions_gate_needs_every_step_count(engines: Path, params: Params):
    steps = {f"actions.{n}": GOOD for n in params.gates.steps}
    with chdir(engines):
        write(params, steps, "actions")
        require_passed(params, TARGET, "actions")
        steps.pop("actions.10")
        write(params, steps, "actions")
        with pytest.raises(GateError, match="measured"):
            require_passed(params, TARGET, "actions")


def test_a_result_of_another_engine_or_threshold_does_not_count(engines: Path, params: Params):
    with chdir(engines):
        write(params, {"keys": GOOD})
        record = msgspec.structs.replace(read_record(TARGET, "prefill"), recipes={"prefill": "int8"})
        write_json(engine_folder(TARGET, "prefill") / RECORD, record)
        with pytest.raises(GateError, match=r"params\.yaml says"):
            require_passed(params, TARGET, "prefill")


@pytest.fixture
def compiled(copied_workspace: Path) -> Iterator[EngineRecord]:
    """The record of a prefill engine of 9 fp8 layers, whose file is there."""
    with chdir(copied_workspace):
        folder = engine_folder(TARGET, "prefill")
        (folder / "prefill.engine").write_bytes(b"engine")
        record = msgspec.structs.replace(
            read_record(TARGET, "prefill"),
            file="prefill.engine",
            folder="engine",
            sha256=hash_file(folder / "prefill.engine").sha256,
            layers={"fp8": 9},
        )
        write_json(folder / RECORD, record)
        yield record


def test_an_engine_as_planned_is_accepted(compiled: EngineRecord):
    assert require_engine(load_params(), TARGET, "prefill") == compiled


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": {"fp8": 8, "bf16": 1}}, "8 layers run in fp8, 9 expected"),
        ({"layers": {}}, "0 layers run in fp8, 9 expected"),
        ({"recipes": {"prefill": "int8"}}, r"prefill was built from int8, params\.yaml says"),
        ({"sha256": "0"}, "is not the one that was built"),
    ],
)
def test_an_engine_that_is_not_as_planned_is_refused(
    compiled: EngineRecord, change: dict[str, Any], message: str
):
    write_json(engine_folder(TARGET, "prefill") / RECORD, msgspec.structs.replace(compiled, **change))
    with pytest.raises(GateError, match=message):
        require_engine(load_params(), TARGET, "prefill")


def test_a_decision_is_held_to_the_recipes_of_the_engines_it_runs(compiled: EngineRecord, params: Params):
    """A whole prefix climbs a ladder of its own: what its parts were built from alone says nothing."""
    whole = msgspec.structs.replace(compiled, recipes={"vision": "bf16", "prefill": "int4"})
    write_json(engine_folder("sm120-rtx", "prefix") / RECORD, whole)
    write_json(engine_folder("sm120-rtx", "denoise") / RECORD, read_record(TARGET, "denoise"))
    build = msgspec.structs.replace(params.build, whole_prefix=("sm120-rtx",))
    params = msgspec.structs.replace(params, build=build, targets=("sm120-rtx",))
    assert expectation(params, "sm120-rtx", "actions") == ("int4", params.gates.action_cosine["int4"])


def test_nan_in_one_answer_of_many_is_not_lost(workspace: Path):
    with chdir(workspace):
        reference = Answers()
        answers = [reference.bf16[f"actions.10.{i}"].copy() for i in range(reference.count)]
        assert reference.measure("actions.10", answers).cosine == 1.0
        answers[1][0, 0] = np.nan
        assert np.isnan(reference.measure("actions.10", answers).cosine)
        assert np.isnan(reference.measure("actions.10", answers, action_dims=4).cosine)


def test_one_wrong_chunk_of_many_fails_the_action_gate(workspace: Path):
    with chdir(workspace):
        reference, threshold = Answers(), load_params().gates.action_cosine["int4"]
        answers = [reference.bf16[f"actions.10.{i}"].copy() for i in range(reference.count)]
    answers[0] = -answers[0]
    assert reference.measure("actions.10", answers, action_dims=4).cosine < threshold


def test_a_gate_that_did_not_run_has_failed(copied_workspace: Path):
    (copied_workspace / "metrics" / TARGET / "denoise.json").unlink()
    manifest = copied_workspace / "artifacts" / "bundle" / "manifest.json"
    before = manifest.read_bytes()
    with pytest.raises(GateError, match=r"no gate result: .*denoise\.json"):
        run_stage(copied_workspace, "export.bundle")
    assert manifest.read_bytes() == before


def test_no_bundle_from_a_failed_gate(copied_workspace: Path):
    path = copied_workspace / "metrics" / TARGET / "vision.json"
    result = msgspec.json.decode(path.read_bytes(), type=Result)
    bad = {"image_tokens": msgspec.structs.replace(GOOD, cosine=0.5)}
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(result, measured=bad)))
    shutil.rmtree(copied_workspace / "artifacts" / "bundle")
    with pytest.raises(GateError, match=r"cosine 0\.500000"):
        run_stage(copied_workspace, "export.bundle")
    assert not (copied_workspace / "artifacts" / "bundle").exists()


def test_no_bundle_when_params_moved_on(copied_workspace: Path):
    change_params(copied_workspace, components__prefill={"recipe": "fp8", "keep": ["*.qkv"]})
    with pytest.raises(GateError, match="prefill was quantized as fp8 keeping"):
        run_stage(copied_workspace, "export.bundle")


def test_no_bundle_of_engines_that_were_to_act_and_did_not(copied_workspace: Path):
    change_params(copied_workspace, gates__closed_loop__targets=[TARGET])
    manifest = copied_workspace / "artifacts" / "bundle" / "manifest.json"
    before = manifest.read_bytes()
    assert b"closed_loop" not in before
    with pytest.raises(GateError, match=r"no gate result: .*closed_loop\.json"):
        run_stage(copied_workspace, "export.bundle")
    assert manifest.read_bytes() == before


def test_a_bundle_tells_what_its_engines_did(copied_workspace: Path, capsys: pytest.CaptureFixture[str]):
    change_params(copied_workspace, gates__closed_loop__targets=[TARGET])
    with chdir(copied_workspace):
        params = load_params()
        asked = params.gates.closed_loop
        thresholds = (asked.success, asked.loss, asked.divergence)
        found = ClosedLoop(asked.suite, asked.tasks, 40, 39, 2, 1, 0.004, "engine", *thresholds)
        mutants = dict.fromkeys(MUTANTS, msgspec.structs.replace(found, successes=0))
        recipes = decision_recipes(TARGET, params.networks(TARGET))
        write_json(METRICS / TARGET / "closed_loop.json", Acted(recipes, found, mutants))
    run_stage(copied_workspace, "export.bundle")
    assert read_manifest(copied_workspace / "artifacts" / "bundle").closed_loop == {TARGET: found}
    run_stage(copied_workspace, "validate.report")
    assert f"| {TARGET} | closed_loop | engine | metaworld | 39/40 | 2 | 1 | 0.004 | pass |" in (
        capsys.readouterr().out
    )


def test_an_engine_of_other_weights_fails_its_gate(copied_workspace: Path):
    """The same graph over shuffled weights runs, is finite, and must not pass."""
    path = copied_workspace / "artifacts" / "quantized" / "vision" / "bf16" / "weights.bin"
    values = np.fromfile(path, np.uint16).reshape(-1, 2)
    values[:, ::-1].tofile(path)
    with pytest.raises((GateError, EngineError)):
        run_stage(copied_workspace, "validate.parity", TARGET, "vision")


def test_the_whole_loop_is_held_to_the_coarsest_recipe(copied_workspace: Path):
    change_params(copied_workspace, gates__action_cosine__fp8=0.99999999)
    with pytest.raises(GateError, match=r"actions of cpu-ort \(fp8\)"):
        run_stage(copied_workspace, "validate.actions", TARGET)


def test_the_demo_tells_observations_apart(workspace: Path):
    """Otherwise its action gate could not fail: an engine that is blind would pass it."""
    with chdir(workspace):
        reference, threshold = Answers(), load_params().gates.action_cosine["fp8"]
        dims = read_description().interface.action_dims
        swapped = [reference.bf16[f"actions.10.{(i + 1) % reference.count}"] for i in range(reference.count)]
        noise = [reference.bf16[f"states.{i}"][0] for i in range(reference.count)]
    assert reference.measure("actions.10", noise, dims).cosine < threshold
    assert reference.measure("actions.10", swapped, dims).cosine < threshold
