"""Gates fail closed: below a threshold, on NaN, and when they did not run."""

import shutil
from contextlib import chdir
from pathlib import Path

import msgspec
import numpy as np
import pytest

from export.gates import METRICS, Measured, Result, read_result
from export.params import load_params
from pi05_runtime.errors import EngineError, GateError
from tests.pipeline import TARGET, change_params, run_stage
from validate.metrics import Reference, judge

GOOD = Measured(0.9999, 0.99999, 0.01, 0.001)


def test_a_gate_passes_at_its_threshold(tmp_path: Path):
    with chdir(tmp_path):
        judge("t/vision", "fp8", 0.9999, 3, {"image_tokens": GOOD})
        assert read_result("t/vision").passed


@pytest.mark.parametrize("cosine", [0.9899, float("nan"), -1.0])
def test_a_gate_below_its_threshold_fails_and_can_be_read(tmp_path: Path, cosine: float):
    bad = Measured(cosine, 0.99999, 0.2, 0.001)
    with chdir(tmp_path):
        with pytest.raises(GateError, match=r"at least 0\.99 expected"):
            judge("t/vision", "fp8", 0.99, 3, {"good": GOOD, "bad": bad})
        assert (METRICS / "t" / "vision.json").is_file()
        with pytest.raises(GateError):
            read_result("t/vision")


def test_nan_in_one_answer_of_many_is_not_lost(workspace: Path):
    with chdir(workspace):
        reference = Reference()
        answers = [reference.bf16[f"actions.10.{i}"].copy() for i in range(reference.count)]
        assert reference.measure("actions.10", answers).cosine == 1.0
        answers[1][0, 0] = np.nan
        assert np.isnan(reference.measure("actions.10", answers).cosine)


def test_a_gate_that_did_not_run_has_failed(copied_workspace: Path):
    (copied_workspace / "metrics" / TARGET / "denoise.json").unlink()
    manifest = copied_workspace / "artifacts" / "bundle" / "manifest.json"
    before = manifest.read_bytes()
    with pytest.raises(GateError, match=r"denoise\.json: no gate result"):
        run_stage(copied_workspace, "export.bundle")
    assert manifest.read_bytes() == before


def test_no_bundle_from_a_failed_gate(copied_workspace: Path):
    path = copied_workspace / "metrics" / TARGET / "actions.json"
    result = msgspec.json.decode(path.read_bytes(), type=Result)
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(result, passed=False)))
    shutil.rmtree(copied_workspace / "artifacts" / "bundle")
    with pytest.raises(GateError, match="this gate failed"):
        run_stage(copied_workspace, "export.bundle")
    assert not (copied_workspace / "artifacts" / "bundle").exists()


def test_an_engine_of_other_weights_fails_its_gate(copied_workspace: Path):
    """The same graph over shuffled weights runs, is finite, and must not pass."""
    path = copied_workspace / "artifacts" / "quantized" / "vision" / "weights.bin"
    values = np.fromfile(path, np.uint16).reshape(-1, 2)
    values[:, ::-1].tofile(path)
    with pytest.raises((GateError, EngineError)):
        run_stage(copied_workspace, "validate.parity", TARGET, "vision")


def test_the_whole_loop_is_held_to_the_coarsest_recipe(copied_workspace: Path):
    change_params(copied_workspace, gates__action_cosine__fp8=0.99999999)
    with pytest.raises(GateError, match=r"actions \(fp8\)"):
        run_stage(copied_workspace, "validate.actions", TARGET)


def test_the_demo_tells_observations_apart(workspace: Path):
    """Otherwise its action gate could not fail: an engine that is blind would pass it."""
    with chdir(workspace):
        reference, threshold = Reference(), load_params().gates.action_cosine["fp8"]
        swapped = [reference.bf16[f"actions.10.{(i + 1) % reference.count}"] for i in range(reference.count)]
        noise = [reference.bf16[f"states.{i}"][0] for i in range(reference.count)]
    assert reference.measure("actions.10", noise).cosine < threshold
    assert reference.measure("actions.10", swapped).cosine < threshold
