"""An unmodified openpi-client gets from `pi05 serve` what the loaded policy gives, under any kind of key."""

import json
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pi05_runtime import load
from pi05_runtime.manifest import read_manifest
from pi05_runtime.rebuilt import manifest_sha256
from pi05_runtime.serve.wire import pack, unpack
from tests.pipeline import TARGET
from tests.runtime.serve.serving import STEPS, Served, ask_with_openpi, pi05_serve, sample

REQUESTS = 100
VALUE = """{
    "image": np.arange(24, dtype=np.uint8).reshape(2, 4, 3)[::-1],
    "state": np.linspace(-1, 1, 8),
    "scalars": [np.float32(0.1), np.int64(-3), np.bool_(True), 2.5, 7, None],
    "nested": {"noise": np.ones((10, 32), np.float32), "empty": np.zeros((0, 3), np.float16)},
    "flags": np.array([True, False]),
    "prompt": "öffne die Schublade",
}"""
"""Of every kind of value that openpi's packer takes."""
MAPS = ("corner2=observation/image", "gripperPOV=observation/wrist_image", "state=arm,gripper")


@pytest.fixture
def ask(openpi: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Sends an observation, flat, with openpi-client."""

    def run(port: int, observation: dict[str, Any], count: int = 1) -> subprocess.CompletedProcess[str]:
        return ask_with_openpi(openpi, port, observation, count, tmp_path / "observation.npz")

    return run


def named(found: dict[str, Any], prefix: str, state: str) -> dict[str, Any]:
    images = {f"{prefix}{camera}": image for camera, image in found["images"].items()}
    return {**images, state: found["state"], "prompt": found["prompt"], "noise": found["noise"]}


def test_many_requests(
    served: Served, bundled: Path, ask: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    observation = sample(bundled)
    before = len(served.lines())
    done = ask(served.port, named(observation, "observation/", "observation/state"), REQUESTS)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    with load(bundled, TARGET, STEPS) as policy:
        expected = policy.infer(observation)["actions"]
    assert (report["dtype"], report["keys"]) == ("<f4", ["actions", "server_timing", "timings"])
    np.testing.assert_array_equal(np.float32(report["actions"]), expected)
    assert len(report["round_trip_ms"]) == REQUESTS
    timing = report["server_timing"]
    assert list(timing[0]) == ["infer_ms"]
    for earlier, later in pairwise(timing):
        assert later["prev_total_ms"] > earlier["infer_ms"] > 0
    (line,) = served.new_lines(before)
    assert f"had {REQUESTS} answers" in line, "one line a connection, none a request"


def test_metadata_describe_the_policy(
    served: Served, bundled: Path, ask: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    manifest = read_manifest(bundled)
    interface = manifest.interface
    done = ask(served.port, named(sample(bundled), "observation/", "observation/state"))
    found = json.loads(done.stdout)["metadata"]
    assert (found["name"], found["version"], found["steps"]) == (manifest.name, manifest.version, STEPS)
    assert (found["manifest"], found["target"]) == (manifest_sha256(bundled), TARGET)
    assert "engines" not in found, "they are the bundle's own"
    assert found["cameras"] == list(interface.cameras)
    assert found["actions"] == [interface.horizon, interface.action_dims]
    assert found["noise"] == [interface.horizon, manifest.geometry.action_width]
    assert found["keys"]["corner2"] == ["images/corner2", "observation/corner2"]


@pytest.mark.parametrize("maps", [(), MAPS], ids=["own keys", "mapped keys"])
def test_every_kind_of_key_is_the_same_observation(
    bundled: Path, tmp_path: Path, ask: Callable[..., subprocess.CompletedProcess[str]], maps: tuple[str, ...]
) -> None:
    observation = sample(bundled)
    first, second = observation["images"].values()
    sent = named(observation, "images/", "state")
    if maps:
        sent |= {"observation/image": first, "observation/wrist_image": second.transpose(2, 0, 1)}
        sent |= {"arm": sent["state"][:3], "gripper": sent["state"][3]}
        for key in ("images/corner2", "images/gripperPOV", "state"):
            del sent[key]
    with load(bundled, TARGET, 1) as policy:
        expected = policy.infer(observation)["actions"]
    flags = ["--target", TARGET, "--steps", 1, *(flag for entry in maps for flag in ("--map", entry))]
    with pi05_serve(tmp_path / "log", bundled, *flags) as served:
        done = ask(served.port, sent)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.float32(json.loads(done.stdout)["actions"]), expected)


def test_what_is_refused_is_said_to_the_client(
    served: Served, bundled: Path, ask: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    sent = named(sample(bundled), "observation/", "observation/state")
    sent["observation/corner2"] = sent["observation/corner2"].astype(np.float32)
    done = ask(served.port, sent)
    assert done.returncode == 1
    assert "Error in inference server:\ncamera 'corner2': found float32" in done.stderr
    assert "astype(uint8)" in done.stderr and str(bundled) not in done.stderr


def test_the_bytes_are_those_of_openpi(openpi: Path) -> None:
    write = "import sys, numpy as np; from openpi_client import msgpack_numpy as m; out = sys.stdout.buffer;"
    packed = subprocess.run(
        [openpi, "-c", f"{write} out.write(m.packb({VALUE}))"], check=True, capture_output=True
    ).stdout
    value = eval(VALUE, {"np": np})
    found = unpack(packed)
    for name in ("image", "state", "flags"):
        np.testing.assert_array_equal(found[name], value[name])
        assert found[name].dtype == value[name].dtype
    np.testing.assert_array_equal(found["nested"]["noise"], value["nested"]["noise"])
    assert found["nested"]["empty"].shape == (0, 3)
    assert found["scalars"] == value["scalars"] and found["prompt"] == value["prompt"]
    del value["scalars"], found["scalars"]  # a decision has no scalars of numpy's, and they are not packed
    again = f"{write} found = m.unpackb(sys.stdin.buffer.read()); out.write(m.packb(found))"
    echoed = subprocess.run([openpi, "-c", again], input=pack(value), check=True, capture_output=True).stdout
    assert echoed == pack(value) == pack(found)
