"""The active bundle, loaded: what a robot's own program starts from."""

from pathlib import Path

from pi05_runtime.device.pull import signed_manifest
from pi05_runtime.device.slots import read_slots, require_state
from pi05_runtime.device.store import Store
from pi05_runtime.errors import DeviceError
from pi05_runtime.policy import Policy


def load_active(root: Path, steps: int | None) -> Policy:
    """See pi05_runtime.load_active."""
    store = Store(root)
    id = read_slots(store).active
    if id is None:
        raise DeviceError(f"no active bundle in {root}: run `pi05 pull`, `pi05 test` and `pi05 activate`")
    record = store.record(id)
    require_state(record, "tested")
    signed_manifest(store, id)
    return Policy.load(store.bundle(id), record.target, steps, store.own_engines(record))
