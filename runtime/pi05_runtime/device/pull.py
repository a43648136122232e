"""Pulling: from a repository to a verified bundle on this device, of which nothing was trusted unseen.

First the manifest and its signature, a few kilobytes; then the files that this device's target names and
that no bundle on it has yet. A kill at any point costs what was not yet on disk: the next pull goes on.
"""

import hashlib
import re
import shutil
from collections.abc import Callable
from contextlib import suppress

import msgspec
from tqdm import tqdm

from pi05_runtime.device.hub import COMMIT, Hub
from pi05_runtime.device.slots import read_slots
from pi05_runtime.device.store import Record, Store
from pi05_runtime.errors import BundleError, DeviceError
from pi05_runtime.manifest import FILE as MANIFEST
from pi05_runtime.manifest import File, Manifest, build_files, read_manifest, shared_files
from pi05_runtime.signature import FILE as SIGNATURE
from pi05_runtime.signature import check_manifest, check_signed, load_keys, read_signature
from pi05_runtime.targets import find_target
from pi05_runtime.verify import target_files, verify

ID_LENGTH = 16
AGAIN = "delete the folder, then pull the bundle again"
ARRIVING = "arriving"
"""In place of an id, of what is not yet known to be a bundle."""
TAG = re.compile(r"v(\d.*)")
"""As `export.publish` tags a version."""
Choose = Callable[[Manifest], str]
"""The target for this device. Errors: TargetError if none fits."""


def pull(store: Store, repo: str, revision: str, choose: Choose, offline: bool = False) -> Record:
    """The bundle at a revision, signed by a trusted key, every file of its target hashed.

    revision: branch, tag or commit. offline: takes what an earlier pull of this very revision brought.
    Errors: NetworkError, BundleError, DeviceError, TargetError; the store's other bundles are as before.
    """
    with store.working():
        if offline:
            return _pulled_before(store, repo, revision)
        hub = Hub(repo)
        commit = revision if COMMIT.fullmatch(revision) else hub.commit(revision)
        small = {name: hub.read(commit, name) for name in (MANIFEST, SIGNATURE)}
        store.assemble(ARRIVING, {}, small)
        try:
            manifest = signed_manifest(store, ARRIVING)
        finally:
            shutil.rmtree(store.bundle(ARRIVING))
        id = hashlib.sha256(small[MANIFEST]).hexdigest()[:ID_LENGTH]
        _check_tag(revision, manifest)
        target = choose(manifest)
        had = _had(store, id)
        slots = read_slots(store)
        if had is not None and had.target != target and id in (slots.active, slots.previous):
            raise DeviceError(
                f"bundle {id} is in use for {had.target}, {target} found: activate another bundle first"
            )
        record = Record(id, manifest.name, manifest.version, repo, commit, revision, target, "pulled")
        fetch(store, record, needed(manifest, record.target))
        store.assemble(id, {}, small)
        if had is not None and had.target == target:
            record = msgspec.structs.replace(record, state=had.state, engines=had.engines)
        store.write_record(record)
        return verified(store, record)


def fetch(store: Store, record: Record, files: dict[str, File]) -> None:
    """Brings files of a bundle that are not on the device yet, and links all of them into the bundle.

    Errors: DeviceError before the first byte if the disk is too small for all of them; NetworkError;
    BundleError for a file that arrives damaged twice.
    """
    store.objects.mkdir(parents=True, exist_ok=True)
    missing = {file.sha256: (name, file) for name, file in files.items() if not store.has(file)}
    parts = {digest: store.objects / f"{digest}.part" for digest in missing}
    have = {digest: part.stat().st_size for digest, part in parts.items() if part.exists()}
    total = sum(file.size for _, file in missing.values())
    store.require_space(total - sum(have.values()))
    hub = Hub(record.repo)
    with tqdm(total=total, initial=sum(have.values()), desc="pull", unit="B", unit_scale=True) as bar:
        for name, file in missing.values():
            _fetch_one(store, hub, record.commit, name, file, bar.update)
    store.assemble(record.id, files, {})


def verified(store: Store, record: Record) -> Record:
    """The record of a bundle that was checked again: signature, then manifest, then every file's hash.

    Errors: BundleError; a bundle that fails is `pulled` again, whatever it was.
    """
    try:
        _check(store, record)
    except BundleError:
        store.write_record(record.at("pulled"))
        raise
    if record.state == "pulled":
        store.write_record(record := record.at("verified"))
    return record


def _check(store: Store, record: Record) -> None:
    """Errors: BundleError."""
    folder = store.bundle(record.id)
    manifest = signed_manifest(store, record.id)
    allowed = {*manifest.files, MANIFEST, SIGNATURE}
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    present = {path.relative_to(folder).as_posix() for path in found}
    wanted = needed(manifest, record.target).keys() | (present & manifest.files.keys())
    verify(folder, manifest.files, wanted, AGAIN)
    if extra := sorted(present - allowed):
        raise BundleError(f"{folder}: {extra} found, which the manifest does not name; {AGAIN}")


def needed(manifest: Manifest, target: str) -> dict[str, File]:
    """What a device of `target` keeps: all to act, or, for a target that the bundle has no engines for, all
    to build them. Errors: TargetError for a target that neither the bundle nor its ONNX can serve."""
    if target not in manifest.targets and find_target(target).from_onnx:
        names = shared_files(manifest) | build_files(manifest, target)
    else:
        names = set(target_files(manifest, target).files)
    return {name: manifest.files[name] for name in sorted(names)}


def signed_manifest(store: Store, id: str) -> Manifest:
    """A bundle's manifest, whose signature by a trusted key was checked first. Errors: BundleError."""
    folder = store.bundle(id)
    signed = read_signature(folder, load_keys(store.keys))
    check_manifest(folder, signed)
    manifest = read_manifest(folder)
    check_signed(folder, manifest, signed)
    return manifest


def _fetch_one(
    store: Store, hub: Hub, commit: str, name: str, file: File, arrived: Callable[[int], object]
) -> None:
    """A damaged download is thrown away and asked for once more."""
    part = store.objects / f"{file.sha256}.part"
    hub.download(commit, name, part, file.size, arrived)
    try:
        store.adopt(part, file)
    except BundleError:
        hub.download(commit, name, part, file.size, arrived)
        try:
            store.adopt(part, file)
        except BundleError as error:
            raise BundleError(f"{name}: {error}, twice; tell the publisher") from error


def _check_tag(revision: str, manifest: Manifest) -> None:
    """A tag is not signed, but the version that it states is. Errors: BundleError if they differ."""
    tag = TAG.fullmatch(revision)
    if tag and tag[1] != manifest.version:
        raise BundleError(
            f"version {manifest.version} found under the tag {revision}, {tag[1]} expected: another bundle "
            "is served in its place; tell the publisher"
        )


def _had(store: Store, id: str) -> Record | None:
    """The bundle's record, if the device has it already and undamaged."""
    with suppress(DeviceError):
        return store.record(id)
    return None


def _pulled_before(store: Store, repo: str, revision: str) -> Record:
    for record in store.all_records():
        if record.repo == repo and revision in (record.commit, record.revision):
            return verified(store, record)
    raise DeviceError(
        f"{repo}@{revision} was not pulled to this device before, which --offline needs: pull it once with a "
        "network"
    )
