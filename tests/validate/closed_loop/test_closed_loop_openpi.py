"""openpi's own server as a policy: no noise, no hash, keys that it does not tell, errors as tracebacks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pi05_runtime.errors import NetworkError
from tests.validate.closed_loop.fake_policy import HORIZON, FakePolicy, command, decide, episodes, served
from tests.validate.closed_loop.openpi_server import openpi_server
from validate.closed_loop.policies import Client, Refused
from validate.closed_loop.records import ClosedLoopError

NOISE = np.zeros((HORIZON, 1), np.float32)
SEEN = {"observation/state": np.zeros(4, np.float32), "prompt": "go left"}


def infer(observation: dict[str, Any]) -> dict[str, Any]:
    """What openpi's answer has: doubles, the state, times, and a number of numpy's."""
    images = {camera: observation[f"observation/{camera}"] for camera in ("front", "wrist")}
    state = observation["observation/state"]
    seen = {"images": images, "state": state, "prompt": observation["prompt"], "noise": NOISE}
    times = {"infer_ms": np.float64(1.5)}
    return {"actions": decide(seen).astype(np.float64), "state": state, "policy_timing": times}


def test_it_is_judged_beside_a_reference_and_gets_no_noise(tmp_path: Path):
    asked: list[set[str]] = []

    def watched(observation: dict[str, Any]) -> dict[str, Any]:
        asked.append(set(observation))
        return infer(observation)

    with served(FakePolicy()) as reference, openpi_server(watched) as address:
        command(tmp_path, "--scenes", 2, "--reference", reference, "--policy", f"x={address}")
    found = {file: episode for file, episode in episodes(tmp_path).items() if file.endswith("x.json")}
    assert len(found) == 4 and all(episode["success"] for episode in found.values())
    assert all(0 < divergence < 0.01 for episode in found.values() for divergence in episode["divergence"])
    assert {frozenset(keys) for keys in asked} == {
        frozenset({"observation/front", "observation/wrist", "observation/state", "prompt"})
    }
    assert json.loads((tmp_path / "run.json").read_bytes())["policies"]["x"] == {}


def test_it_may_be_the_reference(tmp_path: Path):
    with openpi_server(infer) as reference, served(FakePolicy()) as address:
        command(tmp_path, "--scenes", 1, "--reference", reference, "--policy", f"ours={address}")
    found = episodes(tmp_path)
    assert len(found) == 4 and all(episode["success"] for episode in found.values())
    assert found["episodes/fake/left/0/ours.json"]["divergence"]


def test_its_traceback_fails_one_episode(tmp_path: Path):
    def deaf(observation: dict[str, Any]) -> dict[str, Any]:
        if observation["prompt"] == "go right":
            raise KeyError("go right is not known")
        return infer(observation)

    with openpi_server(deaf) as address:
        command(tmp_path, "--scenes", 1, "--task", "right", "--task", "left", "--policy", f"x={address}")
    left, right = episodes(tmp_path).values()
    assert left["success"] and left["error"] is None
    assert not right["success"] and "KeyError: 'go right is not known'" in right["error"]


def test_what_its_metadata_say_is_what_it_is_known_by(tmp_path: Path):
    with openpi_server(infer, {"checkpoint": "pi05_a"}) as address:
        command(tmp_path, "--scenes", 1, "--policy", f"x={address}")
    with (
        openpi_server(infer, {"checkpoint": "pi05_b"}) as address,
        pytest.raises(ClosedLoopError, match="checkpoint pi05_a found, pi05_b expected"),
    ):
        command(tmp_path, "--scenes", 2, "--policy", f"x={address}")


def test_another_policy_that_answers_after_a_refusal_ends_the_run():
    metadata = {"checkpoint": "pi05_a"}
    with openpi_server(infer, metadata) as address:
        client = Client(address)
        with pytest.raises(Refused, match="KeyError"):
            client.infer(SEEN)
        metadata["checkpoint"] = "pi05_b"
        with pytest.raises(NetworkError, match="another policy answers than before"):
            client.infer(SEEN)
        client.close()
