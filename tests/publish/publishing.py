"""Publishing in tests: the command, and a key to sign with."""

from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.pipeline import run_stage

REPO, TAG = "acme/pi05-demo", "v0.1.0"


def write_key(path: Path, key: Any = None, password: bytes | None = None) -> Path:
    key = key or ec.generate_private_key(ec.SECP256R1())
    lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, lock))
    path.chmod(0o600)
    return path


def publish(here: Path, key: Path, *options: str) -> None:
    run_stage(here, "export.publish", "--repo", REPO, "--key", str(key), *options)
