"""A seeded bundle of kernel plans, judged and then timed; and what is not timed."""

import time
from pathlib import Path
from shutil import copytree

import pytest
from msgspec.structs import replace
from safetensors.numpy import load_file, save_file

from pi05_runtime import manifest as contract
from pi05_runtime.errors import GateError
from pi05_runtime.verify import hash_file
from tests.kernels.interpreting_device import InterpretingDevice
from tests.validate.conftest import STEPS, TINY
from validate.benchmark import measure as module
from validate.benchmark.floors import CHIPS, cost
from validate.benchmark.measure import Calls, Subject, measure, time_calls

H100 = CHIPS[0]


def test_a_seeded_engine_passes_its_gate_and_is_timed(
    subject: Subject, interpreted: list[InterpretingDevice]
) -> None:
    *_, run = measure(subject, STEPS, Calls(0, 2), H100)
    assert run.golden.cosine.keys() == set(STEPS) and min(run.golden.cosine.values()) >= 0.995
    assert run.golden.threshold == 0.995 and run.recipes == dict.fromkeys(
        ("vision", "prefill", "denoise"), "fp8"
    )
    assert (run.shape.views, run.shape.prefix, run.shape.prompt, run.shape.horizon) == (2, 16, 8, 4)
    (steps,) = run.steps
    assert steps.alone.keys() == {"vision", "prefill", "denoise"} and len(steps.samples_ms) == 2
    assert steps.inside.keys() == {"preprocess", "decision"}
    row = run.seed["1_steps"]
    assert row.e2e_total_ms == steps.total.median_ms and row.vision_ms == steps.alone["vision"].median_ms
    assert row.kv_cache_ms == steps.alone["prefill"].median_ms and row.hz == pytest.approx(
        1e3 / row.e2e_total_ms
    )
    floors = [cost(c, TINY, 2, 16, 4, "fp8").milliseconds(H100) for c in run.recipes]
    assert steps.floor_ms == pytest.approx(sum(f[0] for f in floors if f))
    assert steps.distance == pytest.approx(steps.total.median_ms / steps.floor_ms)
    assert all(device.closed and device.leaks == 0 for device in interpreted) and len(interpreted) == 2


def test_a_wrong_engine_is_not_timed(
    subject: Subject, interpreted: list[InterpretingDevice], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = copytree(subject.bundle, tmp_path / "bundle")
    manifest = contract.read_manifest(bundle)
    golden = bundle / manifest.golden.file
    tensors = load_file(golden)
    save_file(tensors | {f"actions.{n}": -tensors[f"actions.{n}"] for n in STEPS}, golden)
    files = manifest.files | {manifest.golden.file: hash_file(golden)}
    changed = replace(manifest, files=files)
    (bundle / contract.FILE).write_bytes(contract.encode(changed))
    monkeypatch.setattr(module, "time_calls", lambda *_: pytest.fail("a wrong engine was timed"))
    wrong = Subject("wrong", "tiny", bundle, subject.target, "seeded")
    with pytest.raises(GateError, match=r"self-test of sm90-plan failed: cosine -0\.99"):
        list(measure(wrong, STEPS, Calls(0, 2), H100))


def test_nothing_begins_after_the_deadline() -> None:
    assert Calls(1, 1, time.monotonic() - 1).over and not Calls(1, 1).over


def test_warm_up_calls_do_not_count() -> None:
    calls: list[float] = []

    def work() -> None:
        time.sleep(0.05 if len(calls) < 2 else 0)
        calls.append(0)

    samples = time_calls(work, Calls(2, 5), "work")
    assert len(calls) == 7 and len(samples) == 5 and max(samples) < 50
