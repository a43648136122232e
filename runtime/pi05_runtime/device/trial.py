"""The self-test of a pulled bundle: what stands between verified and active."""

from pi05_runtime.device.pull import signed_manifest
from pi05_runtime.device.slots import require_state
from pi05_runtime.device.store import Store
from pi05_runtime.errors import Pi05Error
from pi05_runtime.selftest import Report, selftest_isolated


def test(store: Store, id: str, minutes: float) -> Report:
    """Runs the self-test in a process of its own, and marks the bundle as tested.

    A bundle that fails is `verified` again, whatever it was. What is active stays active: rolling back is for
    a person or a fleet. Errors: DeviceError for a bundle that is not verified, and those of the self-test.
    """
    with store.working():
        record = store.record(id)
        require_state(record, "verified")
        try:
            signed_manifest(store, id)
            report = selftest_isolated(store.bundle(id), record.target, store.own_engines(record), minutes)
        except Pi05Error:
            store.write_record(record.at("verified"))
            raise
        store.write_record(record.at("tested"))
    return report
