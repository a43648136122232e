"""A seeded bundle of kernel plans, judged and then timed; and what is not timed."""

from pathlib import Path
from shutil import copytree

import pytest
from msgspec.structs import replace
from safetensors.numpy import load_file, save_file

from pi05_runtime import golden
from pi05_runtime import manifest as contract
from pi05_runtime.engines import overlap
from pi05_runtime.errors import GateError
from pi05_runtime.plan import Shaped, read_plan
from pi05_runtime.verify import hash_file
from tests.kernels.interpreting_device import InterpretingDevice
from tests.validate.conftest import STEPS, TARGET, TINY, interpreting
from validate.benchmark import measure as module
from validate.benchmark.decisions import Calls
from validate.benchmark.floors import CHIPS, cost
from validate.benchmark.loading import describe, load_policy
from validate.benchmark.measure import Subject, measure
from validate.benchmark.networks import open_networks
from validate.benchmark.results import OVERLAPPED, Run

H100 = CHIPS[0]


@pytest.fixture(scope="module")
def measured(seeded_bundle: Path) -> Run:
    subject = Subject("tiny fp8", "tiny", seeded_bundle, TARGET, "seeded")
    with interpreting() as devices:
        *_, run = measure(subject, STEPS, Calls(0, 1), H100)
    # For the memory in use, for decisions, and for the networks alone.
    assert all(device.closed and device.leaks == 0 for device in devices) and len(devices) == 3
    return run


def test_a_seeded_engine_passes_its_gate_and_is_timed(measured: Run) -> None:
    run = measured
    assert run.golden.cosine.keys() == set(STEPS) and min(run.golden.cosine.values()) >= 0.995
    assert run.golden.threshold == 0.995 and run.recipes == dict.fromkeys(
        ("vision", "prefill", "denoise"), "fp8"
    )
    assert (run.shape.views, run.shape.prefix, run.shape.prompt, run.shape.horizon) == (2, 16, 8, 4)
    (steps,) = run.steps
    networks = {"vision", "prefill", "denoise"}
    assert steps.alone.keys() == {*networks, OVERLAPPED} and len(steps.samples_ms) == 1
    assert steps.parts.keys() == steps.added.keys() == networks
    # The only step goes beside prefill.
    both = steps.alone["vision"].median_ms + steps.alone[OVERLAPPED].median_ms
    assert steps.rest_ms == pytest.approx(steps.total.median_ms - both)
    assert steps.inside.keys() == {"preprocess", "decision"}
    row = run.seed["1_steps"]
    assert row.e2e_total_ms == steps.total.median_ms and row.vision_ms == steps.alone["vision"].median_ms
    assert row.kv_cache_ms == steps.alone["prefill"].median_ms and row.hz == pytest.approx(
        1e3 / row.e2e_total_ms
    )
    floors = [cost(c, TINY, 2, 16, 4, "fp8").milliseconds(H100) for c in run.recipes]
    assert steps.floor_ms == pytest.approx(sum(f[0] for f in floors if f))
    assert steps.distance == pytest.approx(steps.total.median_ms / steps.floor_ms)
    assert run.load_s == pytest.approx(sum(run.loading.parts_s.values())) and run.first_s > 0


def test_every_launch_is_in_the_table(measured: Run, subject: Subject) -> None:
    run = measured
    layers = {"vision": TINY.vision.depth, "prefill": TINY.prefix.depth - 1, "denoise": TINY.expert.depth}
    assert {n: sum(la.launches for la in run.launches if la.network == n) for n in layers} == {
        n: len(shaped.launches) for n, shaped in _shaped(subject).items()
    }
    for la in run.launches:
        counted = "norm" not in la.name and la.name not in ("join", "merge", "patches")
        assert (la.floor_us is not None) == counted, la
        # What is lost in the noise has no distance.
        assert (la.distance is not None) == (counted and la.each_us > 0), la
        assert la.each_us >= 0 and la.decision_ms == pytest.approx(la.each_us * la.launches / 1e3)
    named = {(la.network, la.name): la.launches for la in run.launches}
    assert named["vision", "projector"] == 1 and named["denoise", "action_out"] == 1
    assert all(named[network, "attention"] == count for network, count in layers.items())
    assert sum(la.share for la in run.launches) == pytest.approx(1)
    assert run.outside.keys() == {"images", "prompt"}


def test_a_step_that_does_not_wait_for_its_prefix_is_not_timed(
    subject: Subject, interpreted: list[InterpretingDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It then reads what the decision before left, which over one observation alone is the very same."""

    def at_once(first: list[object], second: list[object], written: object) -> list[tuple[int, slice]]:
        return [(0, slice(None))]

    next(measure(subject, STEPS, Calls(0, 5), H100))
    monkeypatch.setattr(overlap, "_parts", at_once)
    with pytest.raises(GateError, match="2 of 5 decisions gave other actions than the first"):
        list(measure(subject, STEPS, Calls(0, 5), H100))


def test_each_layer_of_the_expert_waits_for_its_own_of_the_prefix(
    subject: Subject, interpreted: list[InterpretingDevice]
) -> None:
    with open_networks(subject.bundle, subject.target, None):
        (device,) = interpreted
        # Once more before them all, and once in the end.
        assert device.calls["follow"] == TINY.expert.depth + 2


def test_where_loading_goes(subject: Subject, interpreted: list[InterpretingDevice]) -> None:
    manifest = contract.read_manifest(subject.bundle)
    target = manifest.targets[subject.target]
    with load_policy(subject.bundle, subject.target, None) as (policy, load):
        before = describe(policy, load, subject.bundle, subject.target, None)
        sample, _ = golden.observation(subject.bundle, manifest.golden.file, manifest.golden.prompt)
        policy.infer(sample)
        found = describe(policy, load, subject.bundle, subject.target, None)
        held = sum(len(array) for device in interpreted for array in device.memory.values())
    assert list(found.parts_s) == ["device", "verify", "open"] and min(found.parts_s.values()) > 0
    assert found.engine_bytes == {n: manifest.files[e.file].size for n, e in target.engines.items()}
    assert found.verified_bytes == sum(manifest.files[name].size for name in target.files)
    # The weights are there when the policy is, the rest comes with the first decision.
    assert before.gpu_bytes and found.gpu_bytes == held > before.gpu_bytes > max(found.engine_bytes.values())


def _shaped(subject: Subject) -> dict[str, Shaped]:
    engines = contract.read_manifest(subject.bundle).targets[subject.target].engines
    plans = {n: read_plan(subject.bundle / e.file).plan for n, e in engines.items()}
    return {n: plan.shaped[0] for n, plan in plans.items()}


def test_a_wrong_engine_is_not_timed(
    subject: Subject, interpreted: list[InterpretingDevice], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = copytree(subject.bundle, tmp_path / "bundle")
    manifest = contract.read_manifest(bundle)
    file = bundle / manifest.golden.file
    tensors = load_file(file)
    save_file(tensors | {f"actions.{n}": -tensors[f"actions.{n}"] for n in STEPS}, file)
    files = manifest.files | {manifest.golden.file: hash_file(file)}
    changed = replace(manifest, files=files)
    (bundle / contract.FILE).write_bytes(contract.encode(changed))
    monkeypatch.setattr(module, "time_decisions", lambda *_: pytest.fail("a wrong engine was timed"))
    wrong = Subject("wrong", "tiny", bundle, subject.target, "seeded")
    with pytest.raises(GateError, match=r"self-test of sm90-plan failed: cosine -0\.99"):
        list(measure(wrong, STEPS, Calls(0, 2), H100))
