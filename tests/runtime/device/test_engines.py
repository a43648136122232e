"""Engines of a pulled bundle that the device built itself: built for real, tied to the bundle's record.

There is no GPU here: the CPU's twin answers for the engines (`device` in tests/runtime/conftest.py).
"""

from pathlib import Path

import msgspec
import pytest

from pi05_runtime import load_active
from pi05_runtime.build import BuildOptions
from pi05_runtime.device import engines, trial
from pi05_runtime.device.pull import pull, verified
from pi05_runtime.device.slots import activate, gc
from pi05_runtime.device.store import Record, Store
from pi05_runtime.errors import DeviceError, GateError, Pi05Error
from pi05_runtime.manifest import read_manifest
from tests.hub.wire import Hub
from tests.runtime.bundle_edits import onnx_file
from tests.runtime.conftest import RTX
from tests.runtime.device.stores import REPO

OPTIONS = BuildOptions(minutes=5, workspace_gib=1)


@pytest.fixture
def pulled(store: Store, published: Path) -> Record:
    return pull(store, REPO, "main", lambda _: RTX)


def build(store: Store, id: str) -> Path:
    """Engines that nobody needs to build again in every test."""
    name = f"{id}-built"
    (store.engines / name).mkdir(parents=True)
    (store.engines / name / "engine").write_bytes(b"engine")
    store.write_record(msgspec.structs.replace(store.record(id), engines=name))
    return store.engines / name


@pytest.mark.usefixtures("device")
def test_a_bundle_acts_on_engines_of_the_device(
    hub: Hub, store: Store, published: Path, pulled: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engines.reason(store, pulled.id) == f"the bundle has no engines for {RTX}"
    lost = onnx_file(published, "prefill", "bf16.onnx")
    store.object(read_manifest(published).files[lost].sha256).unlink()
    (store.bundle(pulled.id) / lost).unlink()
    hub.requests.clear()
    folder, _ = engines.rebuild(store, pulled.id, OPTIONS)
    assert {asked.line.rsplit("/", 1)[1].split("?")[0] for asked in hub.asked("GET")} == {"bf16.onnx"}
    record = store.record(pulled.id)
    assert record.state == "verified" and store.own_engines(record) == folder
    assert engines.reason(store, pulled.id) is None
    given: list[Path | None] = []
    monkeypatch.setattr(trial, "selftest_isolated", lambda bundle, target, own, minutes: given.append(own))
    trial.test(store, pulled.id, minutes=1)
    assert given == [folder]
    activate(store, pulled.id)
    with load_active(store.root) as policy:
        assert policy.manifest.name == pulled.name
    assert pull(store, REPO, "main", lambda _: RTX) == store.record(pulled.id)
    assert store.record(pulled.id).engines == folder.name


@pytest.mark.usefixtures("device")
def test_a_rebuild_that_fails_changes_nothing(
    store: Store, pulled: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = build(store, pulled.id)
    record = store.record(pulled.id)

    def fail(*_: object) -> None:
        raise GateError("the golden sample failed")

    monkeypatch.setattr(engines, "rebuild_engines", fail)
    with pytest.raises(GateError):
        engines.rebuild(store, pulled.id, OPTIONS)
    assert store.record(pulled.id) == record and list(store.engines.iterdir()) == [before]


def test_damaged_engines_are_a_reason(store: Store, pulled: Record) -> None:
    build(store, pulled.id)
    assert "rebuilt.json" in str(engines.reason(store, pulled.id))
    with pytest.raises(Pi05Error, match=r"rebuilt\.json"):
        trial.test(store, pulled.id, minutes=1)
    assert verified(store, store.record(pulled.id)).state == "verified"


def test_gc_keeps_the_engines_of_what_it_keeps(store: Store, pulled: Record) -> None:
    kept = build(store, pulled.id)
    stray = store.engines / "of-no-bundle"
    stray.mkdir()
    (stray / "vision.engine").write_bytes(b"engine")
    (store.engines / f"{RTX}.timing").write_bytes(b"measured")
    store.write_record(store.record(pulled.id).at("tested"))
    activate(store, pulled.id)
    assert gc(store) == len(b"engine")
    assert set(store.engines.iterdir()) == {kept, store.engines / f"{RTX}.timing"}


def test_no_such_bundle(store: Store) -> None:
    with pytest.raises(DeviceError, match="no bundle 'nope' on this device"):
        engines.reason(store, "nope")
