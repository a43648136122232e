"""A release engineer, a Hub and a robot with a history: what attacks, kills and full disks start from.

Made once and copied for each test with `cp -a`, which keeps the hard links of the store as hard links.
"""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from huggingface_hub import constants

from export.hub import Repository
from export.publish import prepare, publish
from pi05_runtime.device.pull import pull
from pi05_runtime.device.slots import activate
from pi05_runtime.device.store import Store
from pi05_runtime.device.trial import test as selftest
from tests.hub.loopback_hub import READER, WRITER, serve
from tests.pipeline import TARGET
from tests.runtime.bundle_edits import edited, onnx_file, replace
from tests.runtime.device.stores import REPO, write_keys

PREVIOUS, ACTIVE, TESTED, NEW = "0.1.0", "0.2.0", "0.3.0", "0.4.0"
"""Versions. The robot has the first three; the fourth is on the Hub only."""


@dataclass(frozen=True)
class Scene:
    """Below `folder`: hub/, store/, and what the publisher has: release.pem, bundle/ at NEW. ids: of the
    versions that the robot has."""

    folder: Path
    ids: dict[str, str]

    @property
    def store(self) -> Store:
        return Store(self.folder / "store")

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle"

    @property
    def key(self) -> Path:
        return self.folder / "release.pem"

    def copy(self, folder: Path) -> "Scene":
        """The same below `folder`, in place of what an earlier copy left there."""
        for path in self.folder.iterdir():
            shutil.rmtree(folder / path.name, ignore_errors=True)
        subprocess.run(["cp", "-a", f"{self.folder}/.", folder], check=True)
        return Scene(folder, self.ids)


def make_scene(folder: Path, bundle: Path) -> Scene:
    scene = Scene(folder, {})
    shutil.copytree(bundle, scene.bundle)
    write_keys(scene.store.keys, "release").rename(scene.key)
    weights = onnx_file(bundle, "vision", "weights.bin")
    with serve(folder / "hub") as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setenv("HF_ENDPOINT", hub.url)
        for number, version in enumerate((PREVIOUS, ACTIVE, TESTED, NEW)):
            data = bytearray((scene.bundle / weights).read_bytes())
            data[number] ^= 1
            replace(scene.bundle, weights, bytes(data))
            with edited(scene.bundle) as manifest:
                manifest["version"] = version
            patch.setenv("HF_TOKEN", WRITER)
            publish(prepare(scene.bundle, scene.key), Repository(REPO, private=False))
            if version != NEW:
                patch.setenv("HF_TOKEN", READER)
                id = pull(scene.store, REPO, f"v{version}", lambda _: TARGET).id
                selftest(scene.store, id, minutes=2)
                scene.ids[version] = id
    activate(scene.store, scene.ids[PREVIOUS])
    activate(scene.store, scene.ids[ACTIVE])
    return scene
