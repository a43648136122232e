"""What a run serves for itself: bundles and the reference answer as elsewhere, and end with the run."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from export.observations import NOISE_SEED, Observations, seeded_noise
from export.params import load_params
from pi05_runtime import load
from pi05_runtime.errors import EngineError
from pi05_runtime.preprocess.normalize import unnormalize_actions
from tests.pipeline import ROOT, TARGET
from tests.validate.closed_loop.fake_policy import command, episodes
from validate.closed_loop.records import ClosedLoopError
from validate.closed_loop.servers import Server

BUNDLE = "artifacts/bundle"
MAPS = ("--map", "corner2=observation/front", "--map", "gripperPOV=observation/wrist")


@pytest.fixture
def here(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The pipeline's folder, as the working directory of this process and of what it starts."""
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return workspace


@pytest.fixture
def observation(here: Path) -> dict[str, Any]:
    """The first held-out one, under a robot's keys."""
    seen = Observations(load_params().heldout)[0]
    images = {f"observation/{camera}": image for camera, image in seen["images"].items()}
    noise = seeded_noise(NOISE_SEED)
    return {**images, "observation/state": seen["state"], "prompt": seen["prompt"], "noise": noise}


@pytest.fixture
def bundle(here: Path) -> Iterator[Server]:
    with closing(Server("bundle", ["bundle", BUNDLE, "--target", TARGET, "--steps=2"])) as server:
        yield server


def test_the_reference_answers_as_the_gates_know_it(observation: dict[str, Any]):
    with closing(Server("reference", ["reference"])) as server:
        actions = server.infer(observation)
    stored = load_file("artifacts/reference/bf16.safetensors")["actions.10.0"]
    interface = load(Path(BUNDLE), TARGET).manifest.interface
    expected = unnormalize_actions(stored, interface.normalization, interface.action_dims)
    assert np.allclose(actions, expected, atol=1e-3)  # other threads may sum in another order


def test_a_bundle_answers_as_it_does_without_a_server(bundle: Server, observation: dict[str, Any]):
    images = {camera: observation[f"observation/{camera}"] for camera in ("corner2", "gripperPOV")}
    plain = {"images": images, "state": observation["observation/state"]}
    with load(Path(BUNDLE), TARGET, steps=2) as policy:
        expected = policy.infer({**plain, "prompt": observation["prompt"], "noise": observation["noise"]})
    assert np.array_equal(bundle.infer(observation), expected["actions"])
    assert bundle.noise_shape == observation["noise"].shape


def test_what_cannot_be_served_says_why(here: Path):
    with pytest.raises(
        EngineError,
        match=r"policy 'x' cannot be served: status 6 \| error: the bundle .* no target 'toaster'",
    ):
        Server("x", ["bundle", BUNDLE, "--target", "toaster"])


def test_a_server_that_crashes_says_how(bundle: Server, observation: dict[str, Any]):
    bundle._process.kill()
    with pytest.raises(EngineError, match=r"its server ended: status -9.*; run again to go on"):
        bundle.infer(observation)


def test_the_pipeline_in_a_simulator(here: Path, tmp_path: Path):
    flags = ("--scenes", 1, "--task", "left", *MAPS)
    policies = ("--policy", f"fp8={BUNDLE}:{TARGET}", "--policy", f"hasty={BUNDLE}:{TARGET}:1")
    command(tmp_path, *flags, "--reference", "pytorch", *policies)
    found = {Path(name).stem: episode for name, episode in episodes(tmp_path).items()}
    assert set(found) == {"reference", "fp8", "hasty"} and not any(e["error"] for e in found.values())
    assert 0 < np.mean(found["fp8"]["divergence"]) < np.mean(found["hasty"]["divergence"])
    identity = json.loads((tmp_path / "run.json").read_bytes())["policies"]
    assert identity["hasty"] == {**identity["fp8"], "steps": 1} and "checkpoint" in identity["reference"]


def test_a_bundle_of_another_checkpoint_is_no_pair(here: Path, tmp_path: Path):
    other = shutil.copytree(BUNDLE, tmp_path / "bundle")
    manifest = json.loads((other / "manifest.json").read_bytes())
    manifest["source"]["files"]["model.safetensors"] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        ClosedLoopError, match=r"another checkpoint than the reference \(other model.safetensors\)"
    ):
        command(tmp_path / "out", "--reference", "pytorch", "--policy", f"x={other}:{TARGET}")
    assert not (tmp_path / "out").exists()


def test_a_server_ends_with_whoever_started_it(here: Path):
    arguments = ["bundle", BUNDLE, "--target", TARGET]
    program = (
        "from validate.closed_loop.servers import Server; import time\n"
        f"print(Server('x', {arguments})._process.popen.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        served = Path("/proc", process.stdout.readline().strip())
        assert served.exists()
        process.send_signal(signal.SIGKILL)
    for _ in range(100):
        if not served.exists():
            break
        time.sleep(0.1)
    assert not served.exists()
