"""Engines that a device builds for a pulled bundle, where the bundle's own do not fit it.

They lie in a folder of their own, which the bundle's record names: what the signature covers stays as it was,
and one rename switches from the old engines to the new ones.
"""

import uuid
from pathlib import Path

import msgspec

from pi05_runtime import golden
from pi05_runtime.build import BuildOptions
from pi05_runtime.device.pull import fetch, signed_manifest
from pi05_runtime.device.slots import require_state
from pi05_runtime.device.store import Record, Store
from pi05_runtime.errors import Pi05Error
from pi05_runtime.manifest import build_files, shared_files
from pi05_runtime.rebuild import reason_to_rebuild
from pi05_runtime.rebuild import rebuild as rebuild_engines
from pi05_runtime.rebuilt import Rebuilt
from pi05_runtime.staging import sync_tree
from pi05_runtime.tuned import Tuned
from pi05_runtime.tuned import tune as tune_bundle


def reason(store: Store, id: str) -> str | None:
    """Why the engines that this bundle would run with do not serve here; None if they pass their self-test.

    Errors: DeviceError for no such bundle, and those of `reason_to_rebuild`.
    """
    record = store.record(id)
    require_state(record, "verified")
    signed_manifest(store, id)
    engines = store.own_engines(record)
    if engines is None:
        return reason_to_rebuild(store.bundle(id), record.target)
    try:
        golden.selftest(store.bundle(id), record.target, engines)
    except Pi05Error as error:
        return str(error)
    return None


def rebuild(store: Store, id: str, options: BuildOptions) -> tuple[Path, Rebuilt]:
    """Builds engines for the bundle's target, after bringing the ONNX that this takes.

    Returns where they are, and how they did. The bundle is then to be tested again.

    Errors: those of pulling and of `pi05_runtime.rebuild.rebuild`; the record and older engines stay.
    """
    with store.working():
        record = store.record(id)
        require_state(record, "verified")
        manifest = signed_manifest(store, id)
        names = build_files(manifest, record.target) | shared_files(manifest)
        fetch(store, record, {name: manifest.files[name] for name in sorted(names)})
        switched, folder = _switched(store, record)
        timing_cache = str(store.engines / f"{record.target}.timing")
        options = msgspec.structs.replace(options, timing_cache=timing_cache)
        rebuilt = rebuild_engines(store.bundle(id), record.target, folder, options)
        sync_tree(folder)
        store.write_record(switched)
    return folder, rebuilt


def tune(store: Store, id: str) -> tuple[Path, Tuned]:
    """Measures the bundle's kernel plans on this device. As `rebuild` otherwise.

    Errors: those of `pi05_runtime.tuned.tune`; the record and an older choice stay.
    """
    with store.working():
        record = store.record(id)
        require_state(record, "verified")
        signed_manifest(store, id)
        switched, folder = _switched(store, record)
        tuned = tune_bundle(store.bundle(id), record.target, folder)
        sync_tree(folder)
        store.write_record(switched)
    return folder, tuned


def _switched(store: Store, record: Record) -> tuple[Record, Path]:
    """The record once there are new engines, and the folder that they are to be made in."""
    name = f"{record.id}-{record.target}-{uuid.uuid4().hex[:8]}"
    return msgspec.structs.replace(record, state="verified", engines=name), store.engines / name
