"""Which bundle acts, and which did before: one small file, replaced whole.

A robot can lose power at any instruction. What is active changes by one rename, so after a restart it is the
old bundle or the new one, with the previous one beside it, and nothing has to be repaired.
"""

import shutil

import msgspec

from pi05_runtime.device.store import STATES, Record, State, Store
from pi05_runtime.errors import DeviceError
from pi05_runtime.staging import write_file


class Slots(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """slots.json: ids of bundles."""

    active: str | None = None
    previous: str | None = None


class Status(msgspec.Struct, frozen=True):
    """What `pi05 status` tells."""

    slots: Slots
    bundles: tuple[Record, ...]


def read_slots(store: Store) -> Slots:
    """Errors: DeviceError for a damaged file."""
    try:
        return msgspec.json.decode(store.slots.read_bytes(), type=Slots)
    except FileNotFoundError:
        return Slots()
    except (OSError, msgspec.DecodeError) as error:
        raise DeviceError(f"{store.slots}: {error}; activate a bundle again") from error


def status(store: Store) -> Status:
    """Errors: DeviceError."""
    return Status(read_slots(store), tuple(store.all_records()))


def require_state(record: Record, wanted: State) -> None:
    """Errors: DeviceError unless the bundle got as far as `wanted`."""
    if STATES.index(record.state) < STATES.index(wanted):
        command = {"pulled": "pull", "verified": "verify", "tested": "test"}[wanted]
        raise DeviceError(
            f"bundle {record.id} is {record.state}, {wanted} expected; run `pi05 {command} {record.id}`"
        )


def activate(store: Store, id: str) -> Slots:
    """Makes a tested bundle the active one; the one before becomes `previous`.

    Errors: DeviceError for a bundle that is not there or has not passed its self-test.
    """
    with store.switching():
        require_state(store.record(id), "tested")
        slots = read_slots(store)
        if slots.active == id:
            return slots
        return _write(store, Slots(id, slots.active))


def rollback(store: Store) -> Slots:
    """Makes the previous bundle the active one, and the other way round. Errors: DeviceError without one."""
    with store.switching():
        slots = read_slots(store)
        if slots.previous is None:
            raise DeviceError("no previous bundle on this device: nothing to roll back to")
        require_state(store.record(slots.previous), "tested")
        return _write(store, Slots(slots.previous, slots.active))


def gc(store: Store) -> int:
    """Deletes every bundle but the active and the previous one, and engines and files that none of both has.
    Bytes freed.

    Records go first: a bundle without one does not exist for any other command.
    """
    with store.working(), store.switching():
        slots = read_slots(store)
        kept = {slots.active, slots.previous}
        for path in store.records.glob("*.json"):
            if path.stem not in kept:
                path.unlink()
        for path in store.bundles.glob("*"):
            if path.name not in kept:
                shutil.rmtree(path)
        freed = 0
        engines = {record.engines for record in store.all_records()}
        for path in store.engines.glob("*/"):
            if path.name not in engines:
                freed += sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
                shutil.rmtree(path)
        for path in store.objects.glob("*"):
            if path.stat().st_nlink == 1:
                freed += path.stat().st_size
                path.unlink()
        return freed


def _write(store: Store, slots: Slots) -> Slots:
    write_file(store.slots, msgspec.json.encode(slots))
    return slots
