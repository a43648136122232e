"""The isolated self-test: what it measures, and how everything that may go wrong in it comes out."""

import os
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from pi05_runtime.errors import BundleError, GateError, TargetError
from pi05_runtime.manifest import read_manifest
from pi05_runtime.policy import Policy
from pi05_runtime.selftest import measure_latency, selftest_isolated
from tests.pipeline import TARGET
from tests.runtime.bundle_edits import edited, onnx_file, replace


@pytest.fixture
def broken_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What imports in place of ONNX Runtime, for a test to write."""
    folder = tmp_path / "libraries"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder / "onnxruntime.py"


def test_reports_golden_sample_and_latency(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    with edited(bundle) as changed:
        changed["golden"]["budget_ms"] = {TARGET: 60_000, "sm110-trt": 0.001}
    report = selftest_isolated(bundle, TARGET, None, minutes=5)
    assert tuple(result.steps for result in report.golden) == manifest.golden.steps
    assert all(result.passed for result in report.golden)
    latency = report.latency
    assert (latency.steps, latency.warm_up, latency.repeats) == (manifest.default_steps, 3, 20)
    assert 0 < latency.median_ms <= latency.p99_ms < 60_000
    assert latency.budget_ms == 60_000


def test_a_relative_path_is_the_callers(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle.parent)
    assert selftest_isolated(Path(bundle.name), TARGET, None, minutes=5).latency.budget_ms is None


def test_a_median_over_the_budget_fails_with_both(bundle: Path) -> None:
    with edited(bundle) as manifest:
        manifest["golden"]["budget_ms"] = {TARGET: 0.001}
    with pytest.raises(
        GateError, match=r"median of \d+\.\d ms over 20 decisions .* at most 0\.001 ms expected"
    ):
        selftest_isolated(bundle, TARGET, None, minutes=5)


def test_wrong_weights_fail_the_golden_sample(bundle: Path) -> None:
    name = onnx_file(bundle, "denoise", "weights.bin")
    replace(bundle, name, bytes((bundle / name).stat().st_size))
    with pytest.raises(GateError, match=r"failed: cosine .* do not run this bundle"):
        selftest_isolated(bundle, TARGET, None, minutes=5)


class Wavering:
    """A policy whose second decision is another one."""

    def __init__(self, bundle: Path) -> None:
        self.manifest, self.steps, self.asked = read_manifest(bundle), 0, 0

    def infer(self, observation: object) -> dict[str, object]:
        self.asked += 1
        actions = np.zeros((2, 3), np.float32)
        actions[1, 2] = 1e-7 * (self.asked == 2)
        return {"actions": actions, "timings": {"total": 1.0}}


def test_a_plan_that_wavers_fails_and_no_other_engine(bundle: Path) -> None:
    with pytest.raises(GateError, match=r"sm110-plan failed: 1 of 500 decisions gave other actions than the"):
        measure_latency(cast(Policy, Wavering(bundle)), bundle, "sm110-plan")
    latency = measure_latency(cast(Policy, Wavering(bundle)), bundle, "sm110-trt")
    assert (latency.warm_up, latency.repeats, latency.median_ms) == (300, 200, 1.0)


def test_errors_keep_their_kind(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="no target 'toaster'"):
        selftest_isolated(bundle, "toaster", None, minutes=5)
    with pytest.raises(BundleError, match=r"rebuilt\.json"):
        selftest_isolated(bundle, TARGET, tmp_path / "engines", minutes=5)
    (bundle / "tokenizer.model").write_bytes(b"")
    with pytest.raises(BundleError, match=r"tokenizer\.model: 0 bytes found"):
        selftest_isolated(bundle, TARGET, None, minutes=5)


@pytest.mark.parametrize(
    ("library", "message"),
    [
        ("import os; os.kill(os.getpid(), 11)", "failed: exit by signal 11 found"),
        ("import os; os._exit(0)", "failed: an answer that cannot be read"),
        ("import os; os._exit(9)", "failed: exit with status 9 found"),
        ("raise RuntimeError('half installed')", "failed: RuntimeError: half installed"),
    ],
)
def test_whatever_a_library_does_is_a_failed_gate(
    bundle: Path, broken_library: Path, library: str, message: str
) -> None:
    broken_library.write_text(library)
    with pytest.raises(GateError, match=f"self-test of {TARGET} {message}.*do not run this bundle"):
        selftest_isolated(bundle, TARGET, None, minutes=5)


def test_a_hang_is_ended(bundle: Path, broken_library: Path, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    broken_library.write_text(
        f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    )
    with pytest.raises(GateError, match=r"time limit of 0\.05 minutes found, an answer expected"):
        selftest_isolated(bundle, TARGET, None, minutes=0.05)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
