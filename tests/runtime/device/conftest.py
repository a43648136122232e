"""A Hub on loopback, a release engineer's key, and a device that trusts it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from export.hub import Repository
from export.publish import prepare, publish
from pi05_runtime.device import hub as hub_module
from pi05_runtime.device.store import Store
from tests.hub.loopback_hub import READER, WRITER, serve
from tests.hub.wire import Hub
from tests.runtime.device.scene import Scene, make_scene
from tests.runtime.device.stores import REPO, write_keys


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(hub_module, "WAITS_S", (0, 0, 0))
    with serve(tmp_path / "hub") as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield served


@pytest.fixture(scope="session")
def scene(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """A robot with a history. Copy it, but do not write to it."""
    return make_scene(tmp_path_factory.mktemp("scene"), workspace / "artifacts" / "bundle")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def key(store: Store) -> Path:
    return write_keys(store.keys, "release")


@pytest.fixture
def upload(hub: Hub, key: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Publishes a bundle as a release engineer does; afterwards a device's token is set."""

    def publish_bundle(bundle: Path, by: Path = key) -> None:
        monkeypatch.setenv("HF_TOKEN", WRITER)
        publish(prepare(bundle, by), Repository(REPO, private=False))
        monkeypatch.setenv("HF_TOKEN", READER)
        hub.requests.clear()

    return publish_bundle


@pytest.fixture
def published(upload: Callable[[Path], None], bundle: Path) -> Path:
    upload(bundle)
    return bundle
