"""Pulling: from a repository to a verified bundle on this device, of which nothing was trusted unseen.

First the manifest and its signature, a few kilobytes; then the files that this device's target names and
that no bundle on it has yet. A kill at any point costs what was not yet on disk: the next pull goes on.
"""

import hashlib
from collections.abc import Callable

from tqdm import tqdm

from pi05_runtime.device.hub import COMMIT, Hub
from pi05_runtime.device.store import Record, Store
from pi05_runtime.errors import BundleError, DeviceError
from pi05_runtime.manifest import FILE as MANIFEST
from pi05_runtime.manifest import File, Manifest, build_files, read_manifest, shared_files
from pi05_runtime.signature import FILE as SIGNATURE
from pi05_runtime.signature import check_signed, load_keys, read_signature
from pi05_runtime.verify import verify

ID_LENGTH = 16
Choose = Callable[[Manifest], str]
"""The target for this device. Errors: TargetError if none fits."""


def pull(store: Store, repo: str, revision: str, choose: Choose, offline: bool = False) -> Record:
    """The bundle at a revision, signed by a trusted key, every file of its target hashed.

    revision: branch, tag or commit. offline: takes what an earlier pull of this very revision brought.
    Errors: NetworkError, BundleError, DeviceError, TargetError; the store's other bundles are as before.
    """
    with store.locked():
        if offline:
            return _pulled_before(store, repo, revision)
        hub = Hub(repo)
        commit = revision if COMMIT.fullmatch(revision) else hub.commit(revision)
        small = {name: hub.read(commit, name) for name in (MANIFEST, SIGNATURE)}
        id = hashlib.sha256(small[MANIFEST]).hexdigest()[:ID_LENGTH]
        store.assemble(id, {}, small)
        manifest = signed_manifest(store, id)
        target = choose(manifest)
        files = needed(manifest, target)
        _fetch(store, hub, commit, files)
        store.assemble(id, files, small)
        record = Record(id, manifest.name, manifest.version, repo, commit, revision, target, "pulled")
        store.write_record(record)
        return verified(store, record)


def verified(store: Store, record: Record) -> Record:
    """The record of a bundle that was checked again: signature, then manifest, then every file's hash.

    Errors: BundleError; a bundle that fails is `pulled` again, whatever it was.
    """
    folder = store.bundle(record.id)
    store.write_record(doubted := record.at("pulled"))
    manifest = signed_manifest(store, record.id)
    allowed = {*manifest.files, MANIFEST, SIGNATURE}
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    if extra := sorted(present - allowed):
        raise BundleError(f"{folder}: {extra} found, which the manifest does not name; pull the bundle again")
    verify(folder, manifest.files, needed(manifest, record.target).keys() | (present & manifest.files.keys()))
    state = "verified" if record.state == "pulled" else record.state
    store.write_record(record := doubted.at(state))
    return record


def needed(manifest: Manifest, target: str) -> dict[str, File]:
    """What a device of `target` keeps: all to act, or, for a target that the bundle has no engines for, all
    to build them. Errors: TargetError for a target that this release does not know."""
    if target in manifest.targets:
        names = set(manifest.targets[target].files)
    else:
        names = shared_files(manifest) | build_files(manifest, target)
    return {name: manifest.files[name] for name in sorted(names)}


def signed_manifest(store: Store, id: str) -> Manifest:
    """A bundle's manifest, whose signature by a trusted key was checked first. Errors: BundleError."""
    folder = store.bundle(id)
    signed = read_signature(folder, load_keys(store.keys))
    manifest = read_manifest(folder)
    check_signed(folder, manifest, signed)
    return manifest


def _fetch(store: Store, hub: Hub, commit: str, files: dict[str, File]) -> None:
    """Brings every file that is not there yet. Errors: DeviceError before the first byte if the disk is too
    small for all of them."""
    store.objects.mkdir(parents=True, exist_ok=True)
    missing = {file.sha256: (name, file) for name, file in files.items() if not store.has(file)}
    parts = {digest: store.objects / f"{digest}.part" for digest in missing}
    have = {digest: part.stat().st_size for digest, part in parts.items() if part.exists()}
    total = sum(file.size for _, file in missing.values())
    store.require_space(total - sum(have.values()))
    with tqdm(total=total, initial=sum(have.values()), desc="pull", unit="B", unit_scale=True) as bar:
        for name, file in missing.values():
            _fetch_one(store, hub, commit, name, file, bar.update)


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


def _pulled_before(store: Store, repo: str, revision: str) -> Record:
    for record in store.all_records():
        if record.repo == repo and revision in (record.commit, record.revision):
            return verified(store, record)
    raise DeviceError(
        f"{repo}@{revision} was not pulled to this device before, which --offline needs: pull it once with a "
        "network"
    )
