"""What is refused before anything is sent: bundles and keys that are not fit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from export.artifacts import BUNDLE
from export.signing import KeyFileError
from pi05_runtime.errors import BundleError, GateError, Pi05Error
from pi05_runtime.manifest import FILE as MANIFEST
from tests.hub.wire import Hub
from tests.pipeline import TARGET
from tests.publish.publishing import publish, write_key
from tests.runtime.bundle_edits import ACTED, edited

Change = Callable[[Path], Any]


def fail_gate(bundle: Path) -> None:
    with edited(bundle) as manifest:
        manifest["gates"][TARGET]["actions"]["cosine"] = 0.9


def drop_gate(bundle: Path) -> None:
    with edited(bundle) as manifest:
        del manifest["gates"][TARGET]["prefill"]


def drop_gates(bundle: Path) -> None:
    with edited(bundle) as manifest:
        manifest["gates"] = {}


def act_badly(bundle: Path) -> None:
    with edited(bundle) as manifest:
        manifest["closed_loop"] = {TARGET: ACTED | {"successes": 30}}


def link(bundle: Path) -> None:
    (bundle / "tokenizer.model").rename(bundle.parent / "elsewhere")
    (bundle / "tokenizer.model").symlink_to(bundle.parent / "elsewhere")


@pytest.mark.parametrize(
    "change, kind, expected",
    [
        (
            lambda b: (b / "notes.txt").write_text("x"),
            BundleError,
            r"\['notes.txt'\] found, the manifest does",
        ),
        (lambda b: (b / "model.sig").write_text("x"), BundleError, r"\['model.sig'\] found"),
        (lambda b: (b / "tokenizer.model").unlink(), BundleError, "tokenizer.model: no file found"),
        (lambda b: (b / "tokenizer.model").write_bytes(b"x"), BundleError, "tokenizer.model: 1 bytes found"),
        (lambda b: (b / MANIFEST).unlink(), BundleError, "no manifest found"),
        (link, BundleError, r"\['tokenizer.model'\] found as symbolic links"),
        (fail_gate, GateError, "cpu-ort: gate actions has cosine 0.900000, at least"),
        (drop_gate, GateError, r"cpu-ort: no result of the gates \['prefill'\]"),
        (drop_gates, GateError, r"cpu-ort: no result of the gates \['vision'"),
        (act_badly, GateError, r"cpu-ort: in closed loop, success 75\.0% found, at least 90\.0% expected"),
    ],
    ids=[
        "extra",
        "a signature",
        "missing",
        "altered",
        "manifest",
        "link",
        "gate",
        "no gate",
        "no gates",
        "failures",
    ],
)
def test_a_bundle_that_is_not_fit(
    hub: Hub, here: Path, key: Path, change: Change, kind: type[Pi05Error], expected: str
) -> None:
    change(here / BUNDLE)
    with pytest.raises(kind, match=expected):
        publish(here, key)
    assert not hub.requests


def readable(key: Path) -> Path:
    key.chmod(0o640)
    return key


def in_a_repository(key: Path) -> Path:
    (key.parent / ".git").mkdir()
    return key


def linked_out_of_a_repository(key: Path) -> Path:
    tree = key.parent / "tree"
    (tree / ".git").mkdir(parents=True)
    (tree / "key.pem").symlink_to(key)
    return tree / "key.pem"


def public_half(key: Path) -> Path:
    public = serialization.load_pem_private_key(key.read_bytes(), None).public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    key.write_bytes(public.public_bytes(serialization.Encoding.PEM, form))
    return key


@pytest.mark.parametrize(
    "change, expected",
    [
        (readable, r"mode 640 found, 600 expected.*chmod 600"),
        (in_a_repository, r"inside the repository .*the next `git add` would"),
        (linked_out_of_a_repository, "inside the repository"),
        (public_half, "no private key in PEM form found"),
        (lambda key: key.with_name("absent.pem"), "No such file or directory, a private key expected"),
        (
            lambda key: write_key(key, ec.generate_private_key(ec.SECP384R1())),
            "secp384r1 found, an ECDSA key",
        ),
        (lambda key: write_key(key, rsa.generate_private_key(65537, 2048)), "RSAPrivateKey found, an ECDSA"),
        (lambda key: write_key(key, password=b"secret"), "an encrypted key found"),
    ],
    ids=["mode", "repository", "link", "public", "absent", "P-384", "RSA", "encrypted"],
)
def test_a_key_that_is_not_fit(
    hub: Hub, here: Path, key: Path, change: Callable[[Path], Path], expected: str
) -> None:
    with pytest.raises(KeyFileError, match=expected):
        publish(here, change(key))
    assert not hub.requests
