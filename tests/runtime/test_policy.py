"""A loaded bundle acts as its reference did, and refuses what it was not made for."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pi05_runtime import golden, load
from pi05_runtime.errors import BundleError, EngineError, ObservationError, Pi05Error, TargetError
from pi05_runtime.policy import Policy
from pi05_runtime.preprocess.normalize import unnormalize_actions
from pi05_runtime.tables import read_schedule
from tests.pipeline import TARGET
from tests.runtime.bundle_edits import edited, onnx_file, replace


@pytest.fixture(scope="module")
def policy(workspace: Path) -> Policy:
    return load(workspace / "artifacts" / "bundle", TARGET)


def golden_sample(policy: Policy, bundle: Path) -> tuple[dict[str, Any], dict[int, Any]]:
    return golden.observation(bundle, policy.manifest.golden.file, policy.manifest.golden.prompt)


@pytest.fixture
def sample(policy: Policy, workspace: Path) -> dict[str, Any]:
    return golden_sample(policy, workspace / "artifacts" / "bundle")[0]


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_golden_observation_gives_golden_actions(bundle: Path, steps: int) -> None:
    policy = load(bundle, TARGET, steps)
    interface = policy.manifest.interface
    sample, expected = golden_sample(policy, bundle)
    in_robot_units = unnormalize_actions(expected[steps], interface.normalization, interface.action_dims)
    found = policy.infer(sample)["actions"]
    assert policy.steps == steps
    assert found.dtype == np.float32 and found.shape == (interface.horizon, interface.action_dims)
    assert golden.cosine(found, in_robot_units) > policy.manifest.golden.cosine["fp8"]
    # A cosine does not see the length.
    np.testing.assert_allclose(np.linalg.norm(found), np.linalg.norm(in_robot_units), rtol=0.03)


def test_same_noise_gives_the_same_bits(policy: Policy, sample: dict[str, Any]) -> None:
    first, second = (policy.infer(sample)["actions"] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_without_noise_every_decision_differs(policy: Policy, sample: dict[str, Any]) -> None:
    del sample["noise"]
    first, second = (policy.infer(sample)["actions"] for _ in range(2))
    assert (first != second).all()


def test_path_may_be_a_string_and_steps_default_to_the_manifest(bundle: Path) -> None:
    with edited(bundle) as manifest:
        manifest["default_steps"] = 3
    assert load(str(bundle), TARGET).steps == 3


def test_steps_can_be_changed_on_a_loaded_policy(bundle: Path) -> None:
    policy = load(bundle, TARGET)
    sample, _ = golden_sample(policy, bundle)
    policy.steps = 2
    assert policy.steps == 2
    expected = load(bundle, TARGET, 2).infer(sample)["actions"]
    np.testing.assert_array_equal(policy.infer(sample)["actions"], expected)


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_schedule_takes_time_from_one_to_zero(bundle: Path, steps: int) -> None:
    schedule = read_schedule(bundle / "schedule.safetensors", steps)
    assert schedule.dt.dtype == np.float32 and schedule.dt == np.float32(-1 / steps)
    assert schedule.steps == len(schedule.modulation) == steps


@pytest.mark.parametrize("steps", [3.0, "3", True])
def test_steps_that_are_no_count(bundle: Path, steps: Any) -> None:
    with pytest.raises(BundleError, match=r"steps: .* found, one of \[1, 2, .*10\] expected"):
        load(bundle, TARGET, steps)


def test_an_observation_that_is_no_mapping(policy: Policy) -> None:
    with pytest.raises(ObservationError, match="list found, a mapping"):
        policy.infer([1])  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [0, -1, 11])
def test_unknown_steps(policy: Policy, steps: int) -> None:
    before = policy.steps
    with pytest.raises(BundleError, match=rf"no schedule for {steps} steps.*\[1, 2, .*10\].*export again"):
        policy.steps = steps
    assert policy.steps == before


def test_target_that_the_bundle_lacks(bundle: Path) -> None:
    with pytest.raises(TargetError, match=r"no target 'x86-magic'.*\['cpu-ort'\].*export again"):
        load(bundle, "x86-magic")


def test_target_that_this_runtime_lacks(bundle: Path) -> None:
    with edited(bundle) as manifest:
        manifest["targets"]["x86-magic"] = manifest["targets"][TARGET]
    with pytest.raises(TargetError, match=r"unknown target 'x86-magic'.*cpu-ort.*update"):
        load(bundle, "x86-magic")


def test_timings_are_milliseconds_of_each_part(policy: Policy, sample: dict[str, Any]) -> None:
    timings = policy.infer(sample)["timings"]
    assert list(timings) == ["preprocess", "vision", "prefill", "denoise", "total"]
    total = timings.pop("total")
    assert min(timings.values()) > 0
    assert total >= sum(timings.values())


@pytest.mark.parametrize(("height", "width"), [(112, 112), (37, 301), (1080, 1920)])
def test_images_of_any_size(policy: Policy, sample: dict[str, Any], height: int, width: int) -> None:
    sample["images"] = {c: np.full((height, width, 3), 90, np.uint8) for c in sample["images"]}
    assert np.isfinite(policy.infer(sample)["actions"]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": None}, r"state: found shape \[\], expected \[4\]"),
        ({"state": [0.0, 0.0, float("nan"), 0.0]}, r"state: found non-finite numbers at \[2\]"),
        ({"grip": 1}, r"unknown \['grip'\].*expected \['images', 'prompt', 'state'\]"),
        ({"noise": np.zeros((9, 32))}, r"noise: shape \[9, 32\].*\[10, 32\].*leave it out"),
        ({"noise": np.full((10, 32), np.inf)}, r"noise: shape \[10, 32\] with 320 non-finite"),
        ({"noise": "loud"}, r"noise: str that is no array of numbers"),
        ({"images": np.zeros((2, 8, 8, 3), np.uint8)}, r"images: found ndarray.*'corner2', 'gripperPOV'"),
        ({"images": {}}, r"missing \['corner2', 'gripperPOV'\]"),
        ({"prompt": 3}, r"prompt: found int, expected str"),
        ({"prompt": "wave " * 99}, r"prompt: found \d+ tokens, expected at most 64.*shorten"),
    ],
)
def test_observation_refused(
    policy: Policy, sample: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ObservationError, match=message):
        policy.infer(sample | change)


@pytest.mark.parametrize("key", ["images", "state", "prompt"])
def test_missing_key(policy: Policy, sample: dict[str, Any], key: str) -> None:
    del sample[key]
    with pytest.raises(ObservationError, match=rf"missing \['{key}'\].*pass exactly these keys"):
        policy.infer(sample)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            np.zeros((1, 8, 8, 3), np.uint8),
            r"found uint8 \[1, 8, 8, 3\], expected uint8 \[height, width, 3\]",
        ),
        (np.zeros((8, 8), np.uint8), r"found uint8 \[8, 8\].*rank 3"),
        (np.zeros((8, 8, 3), np.float32), r"found float32 \[8, 8, 3\].*astype\(uint8\)"),
        ([[1, 2], [3]], r"found list that is no array"),
    ],
)
def test_bad_image_is_named(policy: Policy, sample: dict[str, Any], image: Any, message: str) -> None:
    sample["images"] = sample["images"] | {"gripperPOV": image}
    with pytest.raises(ObservationError, match=f"camera 'gripperPOV': {message}"):
        policy.infer(sample)


def test_prompt_longer_than_the_largest_bucket(bundle: Path) -> None:
    with edited(bundle) as manifest:
        manifest["prompt_buckets"] = [8, 16]
    policy = load(bundle, TARGET)
    with pytest.raises(ObservationError, match=r"prompt: \d+ tokens.*at most 16; shorten.*larger"):
        policy.infer(golden_sample(policy, bundle)[0])


def test_padding_of_the_prompt_is_exact(policy: Policy, sample: dict[str, Any], bundle: Path) -> None:
    with edited(bundle) as manifest:
        assert manifest["prompt_buckets"] == [32, 64]
        manifest["prompt_buckets"] = [64]
    found, expected = (p.infer(sample)["actions"] for p in (load(bundle, TARGET), policy))
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_plain_prompts_ignore_the_state(bundle: Path) -> None:
    with edited(bundle) as manifest:
        manifest["interface"]["prompt_format"] = "plain"
    policy = load(bundle, TARGET)
    sample, _ = golden_sample(policy, bundle)
    with_state = policy.infer(sample)["actions"]
    del sample["state"]
    np.testing.assert_array_equal(policy.infer(sample)["actions"], with_state)


@pytest.mark.parametrize("component", ["vision", "prefill", "denoise"])
def test_nan_inside_an_engine_is_refused(bundle: Path, component: str) -> None:
    name = onnx_file(bundle, component, "weights.bin")
    # All bits set is NaN in bfloat16, float32 and float8 alike.
    replace(bundle, name, b"\xff" * (bundle / name).stat().st_size)
    policy = load(bundle, TARGET)
    with pytest.raises(EngineError, match=rf"{component}: \w+ has \d+ non-finite.*do not act"):
        policy.infer(golden_sample(policy, bundle)[0])


def test_engine_of_another_component_is_refused(bundle: Path) -> None:
    with edited(bundle) as manifest:
        engines = manifest["targets"][TARGET]["engines"]
        engines["prefill"] = engines["vision"]
    with pytest.raises(EngineError, match=r"prefill: inputs .*'images'.* found, .*'image_tokens'.* expected"):
        load(bundle, TARGET)


def test_engine_that_does_not_parse_is_refused(bundle: Path) -> None:
    replace(bundle, "onnx/vision/bf16/fp32.onnx", b"no graph")
    with pytest.raises(EngineError, match=r"onnx/vision/bf16/fp32\.onnx: ONNX Runtime .* cannot load it"):
        load(bundle, TARGET)


def test_missing_engine_library_is_named(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(TargetError, match=r"needs onnxruntime.*pip install 'pi05-runtime\[ort\]'"):
        load(bundle, TARGET)


@pytest.mark.parametrize(
    ("name", "size"), [("token_embedding.bin", 2), ("schedule.safetensors", 9), ("tokenizer.model", 5)]
)
def test_table_that_does_not_parse_is_refused(bundle: Path, name: str, size: int) -> None:
    replace(bundle, name, b"\xff" * size)
    with pytest.raises(BundleError, match=rf"{name}: .*bundle"):
        load(bundle, TARGET)


def test_golden_sample_that_does_not_parse_is_refused(bundle: Path) -> None:
    replace(bundle, "golden.safetensors", b"\xff" * 9)
    with pytest.raises(Pi05Error, match=r"golden\.safetensors: not readable as safetensors"):
        golden.selftest(bundle, TARGET)
