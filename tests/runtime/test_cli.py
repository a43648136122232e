"""The `pi05` command: what it prints, and the exit code of everything that can go wrong."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pi05_runtime import cli, golden, load
from pi05_runtime.manifest import read_manifest
from tests.pipeline import TARGET
from tests.runtime.bundle_edits import ACTED, edited, onnx_file, replace

Pi05 = Callable[..., tuple[int, str, str]]


@pytest.fixture
def pi05(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Pi05:
    """Runs the command; returns exit code, stdout and stderr. Other exceptions come through."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pi05", *map(str, arguments)])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


def golden_sample(bundle: Path) -> dict[str, Any]:
    manifest = read_manifest(bundle)
    return golden.observation(bundle, manifest.golden.file, manifest.golden.prompt)[0]


@pytest.fixture
def image_flags(bundle: Path, tmp_path: Path) -> list[str]:
    """--image flags for PNG files of the golden sample's cameras."""
    flags: list[str] = []
    for camera, image in golden_sample(bundle)["images"].items():
        Image.fromarray(image).save(tmp_path / f"{camera}.png")
        flags += ["--image", f"{camera}={tmp_path / camera}.png"]
    return flags


def test_inspect(pi05: Pi05, bundle: Path) -> None:
    manifest = read_manifest(bundle)
    code, out, _ = pi05("inspect", bundle)
    assert code == 0
    assert f"{manifest.name} {manifest.version}" in out and TARGET in out
    assert f"{len(manifest.files)} of {len(manifest.files)} present and intact" in out
    assert out.count("gate ") == sum(map(len, manifest.gates.values()))
    with edited(bundle) as changed:
        changed["closed_loop"] = {TARGET: ACTED}
    _, out, _ = pi05("inspect", bundle)
    assert f"gate     {TARGET} in metaworld (engine): 39 of 40 scenes solved, 2 lost to" in out


def test_inspect_json_is_the_manifest(pi05: Pi05, bundle: Path) -> None:
    code, out, _ = pi05("inspect", bundle, "--json")
    assert code == 0
    assert out.encode() == (bundle / "manifest.json").read_bytes()


def test_inspect_of_a_partial_bundle_counts_its_files(pi05: Pi05, bundle: Path) -> None:
    (bundle / onnx_file(bundle, "vision", "bf16.onnx")).unlink()
    count = len(read_manifest(bundle).files)
    code, out, _ = pi05("inspect", bundle)
    assert code == 0 and f"{count - 1} of {count} present" in out


def test_inspect_checks_files_that_no_target_needs(pi05: Pi05, bundle: Path) -> None:
    path = bundle / onnx_file(bundle, "vision", "table.json")
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    code, out, error = pi05("inspect", bundle)
    assert (code, out) == (5, "") and "table.json: sha256" in error


@pytest.mark.parametrize("steps", [None, 1, 3])
def test_run_takes_the_golden_sample(pi05: Pi05, bundle: Path, steps: int | None) -> None:
    flags = [] if steps is None else ["--steps", steps]
    code, out, _ = pi05("run", bundle, "--target", TARGET, "--json", *flags)
    found = json.loads(out)
    expected = load(bundle, TARGET, steps).infer(golden_sample(bundle))
    assert code == 0
    np.testing.assert_array_equal(np.float32(found["actions"]), expected["actions"])
    assert found["timings"].keys() == expected["timings"].keys()


def test_run_prints_every_action(pi05: Pi05, bundle: Path) -> None:
    with np.printoptions(threshold=1):
        code, out, _ = pi05("run", bundle, "--target", TARGET)
    horizon = read_manifest(bundle).interface.horizon
    assert code == 0 and out.count("]\n") == horizon
    assert golden_sample(bundle)["prompt"] in out and "total" in out


def test_run_takes_an_observation(pi05: Pi05, bundle: Path, image_flags: list[str]) -> None:
    prompt, state = "close the drawer", golden_sample(bundle)["state"].tolist()
    flags = [*image_flags, "--state", *state, "--prompt", prompt]
    code, out, _ = pi05("run", bundle, "--target", TARGET, *flags)
    assert code == 0 and f"prompt: {prompt}\n" in out


def test_plain_prompts_need_no_state(pi05: Pi05, bundle: Path, image_flags: list[str]) -> None:
    with edited(bundle) as manifest:
        manifest["interface"]["prompt_format"] = "plain"
    code, _, error = pi05("run", bundle, "--target", TARGET, *image_flags, "--prompt", "wave")
    assert (code, error) == (0, "")


@pytest.mark.parametrize(
    ("flags", "missing"),
    [
        (["--image", "front=x.png"], "--prompt, --state not given"),
        (["--image", "front=x.png", "--state", "0"], "--prompt not given"),
        (["--image", "front=x.png", "--prompt", "wave"], "--state not given"),
        (["--prompt", "wave"], "--image, --state not given"),
        (["--state", "-0.5", "1"], "--image, --prompt not given"),
    ],
)
def test_run_takes_no_part_of_an_observation(
    pi05: Pi05, bundle: Path, flags: list[str], missing: str
) -> None:
    code, out, error = pi05("run", bundle, "--target", TARGET, *flags)
    assert (code, out) == (4, "")
    assert missing in error and "--image, --prompt, --state" in error


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("front.png", "expected camera=path"),
        ("front={tmp_path}/none.png", "no readable image found"),
        ("front={tmp_path}/text.png", "no readable image found"),
        ("front={tmp_path}/cut.png", "no readable image found"),
        ("front={tmp_path}/good.png", "missing ['corner2', 'gripperPOV'], unexpected ['front']"),
    ],
)
def test_run_names_a_bad_image(pi05: Pi05, bundle: Path, tmp_path: Path, image: str, message: str) -> None:
    (tmp_path / "text.png").write_text("no image")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:-4000])
    given = image.format(tmp_path=tmp_path)
    flags = ["--image", given, "--state", 0, 0, 0, 0, "--prompt", "wave"]
    code, _, error = pi05("run", bundle, "--target", TARGET, *flags)
    assert code == 4 and message in error


def test_run_refuses_two_images_of_one_camera(pi05: Pi05, bundle: Path, image_flags: list[str]) -> None:
    flags = [*image_flags, *image_flags[:2], "--state", 0, 0, 0, 0, "--prompt", "wave"]
    code, _, error = pi05("run", bundle, "--target", TARGET, *flags)
    assert code == 4 and "a second image for camera" in error


def test_selftest_passes(pi05: Pi05, bundle: Path) -> None:
    code, out, error = pi05("selftest", bundle, "--target", TARGET)
    assert (code, error) == (0, "")
    assert out.count(" steps ") == len(read_manifest(bundle).golden.steps)
    assert f"self-test of {TARGET} passed" in out


@pytest.mark.parametrize("component", ["vision", "prefill", "denoise"])
def test_selftest_refuses_other_weights_under_matching_hashes(
    pi05: Pi05, bundle: Path, component: str
) -> None:
    name = onnx_file(bundle, component, "weights.bin")
    replace(bundle, name, bytes((bundle / name).stat().st_size))
    code, out, error = pi05("selftest", bundle, "--target", TARGET)
    assert (code, out) == (8, "")
    assert "failed: cosine" in error and "do not run this bundle" in error


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["inspect", "{bundle}/none"], 5, "no manifest found"),
        (["inspect", "{bundle}/tokenizer.model"], 5, "no manifest found"),
        (["run", "{bundle}", "--target", "toaster"], 6, "no target 'toaster'"),
        (["selftest", "{bundle}", "--target", "toaster"], 6, "no target 'toaster'"),
        (["run", "{bundle}", "--target", TARGET, "--steps", "99"], 5, "no schedule for 99 steps"),
        (["run", "{bundle}"], 2, "--target"),
        (["run", "{bundle}", "--target", TARGET, "--steps", "many"], 2, "invalid int value"),
        ([], 2, "command"),
    ],
)
def test_exit_codes(pi05: Pi05, bundle: Path, arguments: list[str], code: int, message: str) -> None:
    found, out, error = pi05(*(a.format(bundle=bundle) for a in arguments))
    assert (found, out) == (code, "")
    assert message in error


def test_installed_command_reports_without_a_traceback(bundle: Path) -> None:
    (bundle / "tokenizer.model").write_bytes(b"")
    command = Path(sys.executable).with_name("pi05")
    done = subprocess.run([command, "selftest", bundle, "--target", TARGET], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_inspect_of_a_bundle_that_no_target_can_use_names_what_is_missing(pi05: Pi05, bundle: Path) -> None:
    (bundle / "tokenizer.model").unlink()
    code, _, error = pi05("inspect", bundle)
    assert code == 5
    assert "cpu-ort lacks tokenizer.model" in error
