"""Stores to test on: bundles that were never downloaded, and the keys of their signers."""

import shutil
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pi05_runtime.device.pull import ID_LENGTH
from pi05_runtime.device.store import Record, State, Store
from pi05_runtime.manifest import FILE, read_manifest
from pi05_runtime.rebuilt import manifest_sha256
from tests.pipeline import TARGET
from tests.runtime.bundle_edits import edited

REPO = "acme/demo"


def put(store: Store, bundle: Path, state: State, version: str) -> str:
    """A bundle of that version in the store, as a pull would leave it. Its id."""
    own = shutil.copytree(bundle, store.root / "incoming")
    with edited(own) as manifest:
        manifest["version"] = version
    id = manifest_sha256(own)[:ID_LENGTH]
    manifest = read_manifest(own)
    store.objects.mkdir(parents=True, exist_ok=True)
    for name, file in manifest.files.items():
        if not store.object(file.sha256).exists():
            (own / name).rename(store.object(file.sha256))
    store.assemble(id, manifest.files, {FILE: (own / FILE).read_bytes()})
    shutil.rmtree(own)
    store.write_record(Record(id, manifest.name, version, "someone/demo", "0" * 40, "main", TARGET, state))
    return id


def write_keys(folder: Path, name: str) -> Path:
    """A private key beside `folder`, and its public half in it."""
    key = ec.generate_private_key(ec.SECP256R1())
    folder.mkdir(parents=True, exist_ok=True)
    private = folder.parent / f"{name}.pem"
    plain = serialization.NoEncryption()
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    )
    private.chmod(0o600)
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    public = key.public_key().public_bytes(serialization.Encoding.PEM, form)
    (folder / f"{name}.pem").write_bytes(public)
    return private
