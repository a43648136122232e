"""Releases on a Hub on loopback, and simulated fleets that have the first of them."""

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from huggingface_hub import constants

from export.hub import Repository
from export.publish import prepare, publish
from pi05_runtime.device.pull import ID_LENGTH, pull
from pi05_runtime.device.slots import activate
from pi05_runtime.device.store import Store
from pi05_runtime.device.trial import test as selftest
from pi05_runtime.rebuilt import manifest_sha256
from tests.fleet.devices import Device
from tests.fleet.fleet import PI05, Fleet
from tests.fleet.sshd import SSHD, Sshd, end_connections, new_key
from tests.hub.loopback_hub import READER, WRITER, serve
from tests.hub.wire import Hub
from tests.pipeline import TARGET
from tests.runtime.bundle_edits import edited, onnx_file, replace
from tests.runtime.device.stores import REPO, write_keys

OLD, NEW, BAD, FALSE = "v0.1.0", "v0.2.0", "v0.3.0", "v0.4.0"
"""Tags. BAD passed its gates and fails the self-test of every device. FALSE is a second tag of NEW."""

MakeFleet = Callable[[int], Fleet]


@dataclass(frozen=True)
class Releases:
    """A private repository with these tags. ids: tag -> id of its bundle. old, new: what a device has
    after the first, and after the second on top of it."""

    hub: Hub
    key: Path
    private_key: Path
    ids: dict[str, str]
    old: Store
    new: Store

    @property
    def environment(self) -> dict[str, str]:
        """What a device is to be told."""
        return {"HF_ENDPOINT": self.hub.url, "HF_TOKEN": READER}


@pytest.fixture(scope="session")
def releases(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Releases]:
    folder = tmp_path_factory.mktemp("releases")
    bundle = shutil.copytree(workspace / "artifacts" / "bundle", folder / "bundle")
    private = write_keys(folder / "keys", "release")
    old, new = Store(folder / "old"), Store(folder / "new")
    ids: dict[str, str] = {}

    def release(tag: str) -> None:
        with edited(bundle) as manifest:
            manifest["version"] = tag.removeprefix("v")
        patch.setenv("HF_TOKEN", WRITER)
        publish(prepare(bundle, private), Repository(REPO, private=True))
        patch.setenv("HF_TOKEN", READER)
        ids[tag] = manifest_sha256(bundle)[:ID_LENGTH]

    def install(store: Store, tag: str) -> None:
        pull(store, REPO, tag, lambda _: TARGET)
        selftest(store, ids[tag], minutes=2)
        activate(store, ids[tag])

    with serve(folder / "hub") as hub:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
            patch.setattr(constants, "ENDPOINT", hub.url)
            patch.setenv("HF_ENDPOINT", hub.url)
            with edited(bundle) as manifest:
                manifest["default_steps"] = 1  # the self-test of a whole fleet has to be short
            release(OLD)
            shutil.copytree(folder / "keys", old.keys)
            install(old, OLD)
            weights = onnx_file(bundle, "vision", "weights.bin")
            replace(bundle, weights, (bundle / weights).read_bytes()[:-1] + b"\0")
            release(NEW)
            shutil.copytree(old.root, new.root)
            install(new, NEW)
            weights = onnx_file(bundle, "denoise", "weights.bin")
            data = (bundle / weights).read_bytes()
            replace(bundle, weights, data[: len(data) // 2].ljust(len(data), b"\0"))
            release(BAD)
            hub.store.tag(REPO, FALSE, NEW)
        yield Releases(hub, folder / "keys" / "release.pem", private, ids, old, new)


@pytest.fixture
def make_fleet(releases: Releases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeFleet]:
    """A fleet on OLD; every second of its devices is behind an ssh server, where there is one to start."""
    for name, value in releases.environment.items():
        monkeypatch.setenv(name, value)
    with ExitStack() as stack:
        sockets = Path(stack.enter_context(TemporaryDirectory()))
        stack.callback(end_connections, sockets)

        def make(size: int) -> Fleet:
            operator = new_key(tmp_path / "operator") if SSHD else None
            devices: list[Device] = []
            for number in range(1, size + 1):
                folder = tmp_path / f"robot{number:02}"
                folder.mkdir()
                sshd = Sshd(folder / "sshd", operator) if operator and number % 2 == 0 else None
                if sshd is not None:
                    sshd.start()
                    stack.callback(sshd.stop)
                devices.append(Device(folder, sshd))
                devices[-1].give(releases.old)
            variables = {
                "ansible_ssh_private_key_file": str(operator),
                "ansible_python_interpreter": sys.executable,
                "pi05_repo": REPO,
                "pi05_command": str(PI05),
                "pi05_environment": releases.environment,
            }
            return Fleet(tmp_path, devices, variables, sockets)

        yield make
