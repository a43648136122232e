"""Whose bundle this is: model.sig, made by OpenSSF model-signing, read with `cryptography` alone.

The stock verifier wants the whole tree and some forty packages; a device has one target's files and few
packages. The signature itself lists every file with its sha256, so it is read here, and each file that
the device does hold is checked against the manifest that the signature covers.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pi05_runtime import manifest as contract
from pi05_runtime.errors import BundleError
from pi05_runtime.rebuilt import manifest_sha256

FILE = "model.sig"
KEYS = "*.pem"
CURVE = "secp256r1"
"""OpenSSL's prime256v1, NIST's P-256."""
MAX_BYTES = 16 << 20
"""Far above any list of files; a device does not read gigabytes because a server sends them."""
MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
AGAIN = "fetch the bundle again, and if it stays so tell its publisher"


class PublicKey(msgspec.Struct, frozen=True):
    """A trusted signer. fingerprint: sha256 of its PEM form, which `sha256sum` of the file gives too."""

    fingerprint: str
    key: ec.EllipticCurvePublicKey


class Signed(msgspec.Struct, frozen=True):
    """What a signature vouches for. key: fingerprint of the signer. files: name -> sha256."""

    key: str
    files: dict[str, str]


class _Hint(msgspec.Struct):
    hint: str


class _Material(msgspec.Struct, rename="camel"):
    public_key: _Hint


class _Signature(msgspec.Struct):
    sig: bytes


class _Envelope(msgspec.Struct, rename="camel"):
    payload: bytes
    payload_type: str
    signatures: list[_Signature]


class _SigstoreBundle(msgspec.Struct, rename="camel"):
    media_type: str
    verification_material: _Material
    dsse_envelope: _Envelope


class _Subject(msgspec.Struct):
    digest: dict[str, str]


class _Serialization(msgspec.Struct):
    method: str
    hash_type: str


class _Resource(msgspec.Struct):
    name: str
    algorithm: str
    digest: str


class _Predicate(msgspec.Struct):
    serialization: _Serialization
    resources: list[_Resource]


class _Statement(msgspec.Struct):
    type: str = msgspec.field(name="_type")
    subject: list[_Subject]
    predicate_type: str = msgspec.field(name="predicateType")
    predicate: _Predicate


def load_keys(folder: Path) -> tuple[PublicKey, ...]:
    """The signers that a device trusts: every *.pem of `folder`, in the order of their names.

    Errors: BundleError without any, or for a file that is not a public ECDSA key on P-256.
    """
    paths = sorted(folder.glob(KEYS))
    if not paths:
        raise BundleError(
            f"{folder}: no {KEYS} found, at least one publisher's public key expected; copy it there, by "
            "another way than the bundle came"
        )
    return tuple(map(load_key, paths))


def load_key(path: Path) -> PublicKey:
    """One public key. Errors: BundleError if it is anything else."""
    expected = f"a public ECDSA key on P-256 ({CURVE}) in PEM form expected"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}, {expected}; check path and permissions") from error
    if b"PRIVATE KEY" in data:
        raise BundleError(
            f"{path}: a private key found, {expected}; delete it here: who holds it can sign. The public "
            "half is what `openssl ec -pubout` writes"
        )
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BundleError(f"{path}: no public key found, {expected}; copy it again") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise BundleError(f"{path}: {type(key).__name__} found, {expected}; ask the publisher for it")
    if key.curve.name != CURVE:
        raise BundleError(f"{path}: curve {key.curve.name} found, {expected}; ask the publisher for it")
    return public_key(key)


def public_key(key: ec.EllipticCurvePublicKey) -> PublicKey:
    """The key under the name that model-signing gives it."""
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return PublicKey(hashlib.sha256(pem).hexdigest(), key)


def read_signature(bundle: Path, keys: Sequence[PublicKey]) -> Signed:
    """What bundle/model.sig vouches for, by one of `keys`; no other file is read.

    Errors: BundleError for no signature, one by another key, one that does not fit what it signs, and one
    over anything but a list of files with sha256.
    """
    path = bundle / FILE
    envelope, hint = _read_envelope(path)
    trusted = {key.fingerprint: key.key for key in keys}
    if hint not in trusted:
        raise BundleError(
            f"{path}: signed by key {hint}, one of {sorted(trusted)} expected; if that signer is to be "
            "trusted, install its public key, by another way than the bundle came"
        )
    try:
        trusted[hint].verify(envelope.signatures[0].sig, _signed_bytes(envelope), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise BundleError(
            f"{path}: the signature of key {hint} does not fit the list of files beside it: altered after "
            f"it was signed; {AGAIN}"
        ) from None
    try:
        statement = msgspec.json.decode(envelope.payload, type=_Statement)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: what is signed is no list of files: {error}; {AGAIN}") from error
    if found := _flaw(statement):
        raise BundleError(f"{path}: {found}; sign the bundle again with model-signing 1.1")
    return Signed(hint, {resource.name: resource.digest for resource in statement.predicate.resources})


def check_manifest(bundle: Path, signed: Signed) -> None:
    """Holds the signature to the manifest's bytes, before they are parsed. Errors: BundleError."""
    path, expected = bundle / contract.FILE, signed.files.get(contract.FILE)
    try:
        found = manifest_sha256(bundle)
    except OSError as error:
        raise BundleError(f"{path}: no manifest found ({error.strerror}), one expected; {AGAIN}") from error
    if found != expected:
        raise BundleError(
            f"{path}: sha256 {found} found, {expected} is signed: the signature is of another bundle or "
            f"version; {AGAIN}"
        )


def check_signed(bundle: Path, manifest: contract.Manifest, signed: Signed) -> None:
    """Holds the signature to this very manifest, bytes on disk included, and to all files it names.

    Of those, any may be absent here; the ones present are for `verify`. Errors: BundleError naming what was
    signed and what was found.
    """
    path = bundle / FILE
    check_manifest(bundle, signed)
    files = {name: file.sha256 for name, file in manifest.files.items()}
    others = {name: digest for name, digest in signed.files.items() if name != contract.FILE}
    if unsigned := sorted(files.keys() - others.keys()):
        raise BundleError(f"{path}: {unsigned} of the manifest found unsigned, all expected signed; {AGAIN}")
    if unnamed := sorted(others.keys() - files.keys()):
        raise BundleError(f"{path}: {unnamed} found signed, the manifest does not name them; {AGAIN}")
    for name, digest in sorted(files.items()):
        if others[name] != digest:
            raise BundleError(
                f"{path}: {name} is signed with sha256 {others[name]}, the manifest says {digest}; {AGAIN}"
            )


def _read_envelope(path: Path) -> tuple[_Envelope, str]:
    """The envelope, not yet verified, and the fingerprint of the key that is said to have signed it."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise BundleError(
            f"{path}: no signature found ({error.strerror}), one expected in a published bundle; {AGAIN}"
        ) from error
    if len(data) > MAX_BYTES:
        raise BundleError(f"{path}: more than {MAX_BYTES} bytes found, a signature expected; {AGAIN}")
    try:
        bundle = msgspec.json.decode(data, type=_SigstoreBundle)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{path}: damaged: {error}; {AGAIN}") from error
    envelope = bundle.dsse_envelope
    for found, expected in ((bundle.media_type, MEDIA_TYPE), (envelope.payload_type, PAYLOAD_TYPE)):
        if found != expected:
            raise BundleError(f"{path}: {found!r} found, {expected!r} expected; {AGAIN}")
    if (count := len(envelope.signatures)) != 1:
        raise BundleError(f"{path}: {count} signatures found, 1 expected; {AGAIN}")
    return envelope, bundle.verification_material.public_key.hint


def _signed_bytes(envelope: _Envelope) -> bytes:
    """DSSE's pre-authentication encoding, v1."""
    kind = envelope.payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(envelope.payload), envelope.payload)


def _flaw(statement: _Statement) -> str | None:
    """The first thing that model-signing never writes and that types cannot exclude."""
    predicate = statement.predicate
    for found, expected in (
        (statement.type, STATEMENT_TYPE),
        (statement.predicate_type, PREDICATE_TYPE),
        (predicate.serialization.method, "files"),
        (predicate.serialization.hash_type, "sha256"),
    ):
        if found != expected:
            return f"{found!r} found signed, {expected!r} expected"
    names = [resource.name for resource in predicate.resources]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        return f"{twice} found signed twice, each name expected once"
    if outside := [*contract.names_outside(names), *(n for n in names if str(PurePosixPath(n)) != n)]:
        return f"{outside[0]!r} found signed, only plain names inside the bundle expected"
    for resource in predicate.resources:
        if resource.algorithm != "sha256":
            return f"{resource.name}: {resource.algorithm} found signed, sha256 expected"
        if not re.fullmatch("[0-9a-f]{64}", resource.digest):
            return f"{resource.name}: {resource.digest!r} found signed, a sha256 in hex expected"
    whole = hashlib.sha256(b"".join(bytes.fromhex(r.digest) for r in predicate.resources)).hexdigest()
    if (found := [subject.digest.get("sha256") for subject in statement.subject]) != [whole]:
        return f"{found} found as the sha256 over all, {whole} expected"
    return None
