"""Slots: refused without a self-test, switched in one step, and cleaned up."""

import threading
from pathlib import Path

import pytest

from pi05_runtime.device.slots import Slots, activate, gc, read_slots, rollback, status
from pi05_runtime.device.store import Store
from pi05_runtime.errors import DeviceError
from pi05_runtime.manifest import read_manifest
from pi05_runtime.verify import verify
from tests.runtime.device.stores import put


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def three(store: Store, bundle: Path) -> tuple[str, str, str]:
    """Ids of three tested bundles, of which the second is active and the first was before."""
    first, second, third = (put(store, bundle, "tested", version) for version in ("1", "2", "3"))
    activate(store, first)
    activate(store, second)
    return first, second, third


@pytest.mark.parametrize("state", ["pulled", "verified"])
def test_only_a_tested_bundle_is_activated(store: Store, bundle: Path, state) -> None:
    id = put(store, bundle, state, "1")
    with pytest.raises(DeviceError, match=rf"bundle {id} is {state}, tested expected; run `pi05 test"):
        activate(store, id)
    assert read_slots(store) == Slots()


def test_activation_keeps_the_previous(store: Store, three: tuple[str, str, str]) -> None:
    first, second, third = three
    assert read_slots(store) == Slots(second, first)
    assert activate(store, second) == Slots(second, first)
    assert activate(store, third) == Slots(third, second)


def test_rollback_and_back(store: Store, three: tuple[str, str, str]) -> None:
    first, second, _ = three
    assert rollback(store) == Slots(first, second)
    assert rollback(store) == Slots(second, first)


def test_rollback_without_a_previous(store: Store, bundle: Path) -> None:
    activate(store, put(store, bundle, "tested", "1"))
    with pytest.raises(DeviceError, match="nothing to roll back to"):
        rollback(store)


def test_an_unknown_bundle_is_named(store: Store, three: tuple[str, str, str]) -> None:
    with pytest.raises(DeviceError, match=r"no bundle 'nope' on this device, it has \['"):
        activate(store, "nope")


def test_gc_keeps_active_and_previous_and_frees_the_rest(store: Store, three: tuple[str, str, str]) -> None:
    first, second, third = three
    (store.objects / ("0" * 64)).write_bytes(b"of no bundle")
    assert gc(store) == len(b"of no bundle")
    assert {record.id for record in status(store).bundles} == {first, second}
    assert not store.bundle(third).exists()
    for id in (first, second):
        manifest = read_manifest(store.bundle(id))
        verify(store.bundle(id), manifest.files, manifest.files)
    assert gc(store) == 0


def test_one_process_at_a_time(store: Store, three: tuple[str, str, str]) -> None:
    with store.switching():
        other = threading.Thread(target=activate, args=(store, three[2]))
        other.start()
        other.join(0.2)
        assert other.is_alive() and read_slots(store).active == three[1]
    other.join(10)
    assert read_slots(store).active == three[2]
