"""A signature by the stock library, read by the device, and the ways in which it can be somebody else's."""

import base64
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from export.signing import open_key, sign
from pi05_runtime.errors import BundleError
from pi05_runtime.manifest import FILE as MANIFEST
from pi05_runtime.manifest import read_manifest
from pi05_runtime.signature import (
    FILE,
    MAX_BYTES,
    PAYLOAD_TYPE,
    PublicKey,
    check_signed,
    load_keys,
    public_key,
    read_signature,
)
from tests.runtime.bundle_edits import replace

FILES = {"a.bin": b"alpha", "engines/x/b.bin": b"beta"}
Edit = Callable[[dict[str, Any]], Any]


def write_key(path: Path, key: Any = None) -> Path:
    """A private key, as `openssl ecparam -name prime256v1 -genkey` makes one."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    form = serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    path.chmod(0o600)
    return path


def private(path: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def write_public(path: Path, key: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    path.write_bytes(key.public_bytes(serialization.Encoding.PEM, form))
    return path


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_key(tmp_path_factory.mktemp("key") / "release.pem")


@pytest.fixture(scope="module")
def trusted(key: Path) -> tuple[PublicKey, ...]:
    return (public_key(private(key).public_key()),)


@pytest.fixture(scope="module")
def signed_tree(key: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signed") / "tree"
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    sign(folder, open_key(key), folder / FILE)
    return folder


@pytest.fixture
def tree(signed_tree: Path, tmp_path: Path) -> Path:
    """A small signed folder of one's own."""
    return shutil.copytree(signed_tree, tmp_path / "tree")


@pytest.fixture
def signed_bundle(bundle: Path, key: Path) -> Path:
    sign(bundle, open_key(key), bundle / FILE)
    return bundle


def edit_envelope(tree: Path, edit: Edit) -> None:
    envelope = json.loads((tree / FILE).read_bytes())
    edit(envelope)
    (tree / FILE).write_text(json.dumps(envelope))


def edit_statement(tree: Path, edit: Edit, key: Path | None = None) -> None:
    """Changes what is signed; signed again with `key`, or else left with the signature it had."""

    def change(envelope: dict[str, Any]) -> None:
        dsse = envelope["dsseEnvelope"]
        statement = json.loads(base64.b64decode(dsse["payload"]))
        edit(statement)
        payload = json.dumps(statement).encode()
        dsse["payload"] = base64.b64encode(payload).decode()
        if key is not None:
            data = b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)
            signature = private(key).sign(data, ec.ECDSA(hashes.SHA256()))
            dsse["signatures"][0]["sig"] = base64.b64encode(signature).decode()

    edit_envelope(tree, change)


def stock_verifier(tree: Path, public: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "model_signing", "verify", "key", "--public_key", str(public)]
    command += ["--signature", str(tree / FILE), *options, str(tree)]
    return subprocess.run(command, capture_output=True, text=True)


def resources(statement: dict[str, Any]) -> list[dict[str, str]]:
    return statement["predicate"]["resources"]


def test_the_stock_librarys_list_is_read(tree: Path, key: Path, trusted: tuple[PublicKey, ...]) -> None:
    signed = read_signature(tree, trusted)
    assert signed.files == {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}
    assert signed.key == trusted[0].fingerprint


def test_a_partial_tree_is_read(tree: Path, trusted: tuple[PublicKey, ...]) -> None:
    (tree / "a.bin").unlink()
    assert read_signature(tree, trusted).files.keys() == FILES.keys()


def test_one_of_several_trusted_keys(tree: Path, trusted: tuple[PublicKey, ...]) -> None:
    other = public_key(ec.generate_private_key(ec.SECP256R1()).public_key())
    assert read_signature(tree, [other, *trusted]).key == trusted[0].fingerprint


def test_the_stock_verifier_accepts_a_published_tree(
    signed_bundle: Path, key: Path, trusted: tuple[PublicKey, ...], tmp_path: Path
) -> None:
    """Card and git files may lie beside; nothing else may, and no signed file may differ."""
    public = write_public(tmp_path / "keys" / "release.pem", private(key).public_key())
    (signed_bundle / "README.md").write_text("# card")
    (signed_bundle / ".gitattributes").write_text("*.bin filter=lfs")
    done = stock_verifier(signed_bundle, public)
    assert done.returncode == 0, done.stderr + done.stdout
    check_signed(signed_bundle, read_manifest(signed_bundle), read_signature(signed_bundle, trusted))
    (signed_bundle / "extra.bin").write_bytes(b"x")
    done = stock_verifier(signed_bundle, public)
    assert done.returncode != 0 and "extra.bin" in done.stdout + done.stderr


def test_openssls_keys_and_sha256sums_fingerprint(tree: Path, tmp_path: Path) -> None:
    """The commands of docs/publish.md."""
    made, public = tmp_path / "release.pem", tmp_path / "device" / "release.pub.pem"
    public.parent.mkdir()
    make = f"umask 077; openssl ecparam -name prime256v1 -genkey -noout -out {made}"
    subprocess.run(["sh", "-c", make], check=True, capture_output=True)
    show = ["openssl", "ec", "-in", str(made), "-pubout", "-out", str(public)]
    subprocess.run(show, check=True, capture_output=True)
    sign(tree, open_key(made), tree / FILE)
    signed = read_signature(tree, load_keys(public.parent))
    assert signed.key == hashlib.sha256(public.read_bytes()).hexdigest()


def test_no_signature(tree: Path, trusted: tuple[PublicKey, ...]) -> None:
    (tree / FILE).unlink()
    with pytest.raises(BundleError, match=r"model\.sig: no signature found .*, one expected"):
        read_signature(tree, trusted)


def test_an_unknown_signer_is_named_and_so_are_the_known(tree: Path, trusted: tuple[PublicKey, ...]) -> None:
    other = public_key(ec.generate_private_key(ec.SECP256R1()).public_key())
    with pytest.raises(BundleError) as error:
        read_signature(tree, [other])
    assert f"signed by key {trusted[0].fingerprint}" in str(error.value)
    assert f"one of {[other.fingerprint]} expected" in str(error.value)


def test_no_key_trusts_nobody(tree: Path) -> None:
    with pytest.raises(BundleError, match=r"one of \[\] expected"):
        read_signature(tree, [])


def test_another_signer_under_a_trusted_name(tree: Path, trusted: tuple[PublicKey, ...], tmp_path: Path):
    """The fingerprint in the file is only a hint: who writes another's there is found out."""
    sign(tree, open_key(write_key(tmp_path / "other.pem")), tree / FILE)

    def claim(envelope: dict[str, Any]) -> None:
        envelope["verificationMaterial"]["publicKey"]["hint"] = trusted[0].fingerprint

    edit_envelope(tree, claim)
    with pytest.raises(BundleError, match="does not fit the list of files"):
        read_signature(tree, trusted)


@pytest.mark.parametrize(
    "edit",
    [
        lambda statement: resources(statement)[0].update(digest="0" * 64),
        lambda statement: resources(statement).pop(),
        lambda statement: resources(statement)[0].update(name="c.bin"),
        lambda statement: None,  # the same meaning in other bytes
    ],
    ids=["hash", "file left out", "name", "spacing"],
)
def test_altered_after_signing(tree: Path, trusted: tuple[PublicKey, ...], edit: Edit) -> None:
    edit_statement(tree, edit)
    with pytest.raises(BundleError, match="does not fit the list of files beside it: altered"):
        read_signature(tree, trusted)


def test_every_byte_of_signature_and_payload_counts(tree: Path, trusted: tuple[PublicKey, ...]) -> None:
    original = json.loads((tree / FILE).read_bytes())
    dsse = original["dsseEnvelope"]
    payload, signature = (base64.b64decode(x) for x in (dsse["payload"], dsse["signatures"][0]["sig"]))
    for which, data in (("payload", payload), ("sig", signature)):
        for i in range(0, len(data), 7):
            flipped = data[:i] + bytes([data[i] ^ 4]) + data[i + 1 :]
            changed = json.loads(json.dumps(original))
            place = changed["dsseEnvelope"]
            (place if which == "payload" else place["signatures"][0])[which] = base64.b64encode(
                flipped
            ).decode()
            (tree / FILE).write_text(json.dumps(changed))
            with pytest.raises(BundleError, match="does not fit"):
                read_signature(tree, trusted)


@pytest.mark.parametrize(
    "edit, expected",
    [
        (lambda e: e.pop("dsseEnvelope"), "missing required field `dsseEnvelope`"),
        (lambda e: e["dsseEnvelope"].update(payload="%%%"), "damaged"),
        (lambda e: e["dsseEnvelope"].update(payloadType="text/plain"), r"'text/plain' found, 'appl"),
        (lambda e: e.update(mediaType="application/json"), r"'application/json' found, 'application/vnd"),
        (lambda e: e["dsseEnvelope"]["signatures"].clear(), "0 signatures found, 1 expected"),
        (lambda e: e["dsseEnvelope"]["signatures"].append({"sig": "QQ=="}), "2 signatures found, 1 exp"),
        (lambda e: e["dsseEnvelope"]["signatures"][0].update(sig="QQ=="), "does not fit"),
        (lambda e: e["verificationMaterial"].pop("publicKey"), "missing required field `publicKey`"),
    ],
)
def test_malformed_envelope(tree: Path, trusted: tuple[PublicKey, ...], edit: Edit, expected: str) -> None:
    edit_envelope(tree, edit)
    with pytest.raises(BundleError, match=expected):
        read_signature(tree, trusted)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[]", b"null"])
def test_no_envelope_at_all(tree: Path, trusted: tuple[PublicKey, ...], data: bytes) -> None:
    (tree / FILE).write_bytes(data)
    with pytest.raises(BundleError, match=r"model\.sig: damaged"):
        read_signature(tree, trusted)


def test_a_signature_is_not_gigabytes(tree: Path, trusted: tuple[PublicKey, ...]) -> None:
    with (tree / FILE).open("r+b") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(BundleError, match=f"more than {MAX_BYTES} bytes found"):
        read_signature(tree, trusted)


@pytest.mark.parametrize(
    "edit, expected",
    [
        (lambda s: resources(s)[0].update(name="../a.bin"), r"'\.\./a\.bin' found signed, only plain names"),
        (lambda s: resources(s)[0].update(name="/etc/passwd"), "'/etc/passwd' found signed, only plain"),
        (lambda s: resources(s)[0].update(name="engines/../../a"), "only plain names"),
        (lambda s: resources(s)[0].update(name="./a.bin"), r"'\./a\.bin' found signed, only plain names"),
        (lambda s: resources(s)[0].update(name=""), "'' found signed, only plain names"),
        (lambda s: resources(s).append(resources(s)[0]), r"\['a\.bin'\] found signed twice"),
        (lambda s: resources(s)[0].update(algorithm="blake2b"), "a.bin: blake2b found signed, sha256 exp"),
        (lambda s: resources(s)[0].update(digest="abc"), "'abc' found signed, a sha256 in hex expected"),
        (lambda s: resources(s)[0].update(digest="0" * 64), "found as the sha256 over all"),
        (lambda s: s["predicate"]["serialization"].update(method="shards"), "'shards' found signed, 'files'"),
        (lambda s: s["predicate"]["serialization"].update(hash_type="blake3"), "'blake3' found signed"),
        (lambda s: s.update(predicateType="https://slsa.dev/provenance/v1"), "slsa.*found signed"),
        (lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"), "v0.1' found signed"),
        (lambda s: s.pop("predicate"), "what is signed is no list of files.*`predicate`"),
    ],
)
def test_a_trusted_signer_signed_something_else(
    tree: Path, key: Path, trusted: tuple[PublicKey, ...], edit: Edit, expected: str
) -> None:
    edit_statement(tree, edit, key)
    with pytest.raises(BundleError, match=expected):
        read_signature(tree, trusted)


def test_signed_bundle(signed_bundle: Path, trusted: tuple[PublicKey, ...]) -> None:
    """Also where the device holds nothing but manifest and signature."""
    manifest = read_manifest(signed_bundle)
    for path in sorted(signed_bundle.rglob("*"), reverse=True):
        if path.is_file() and path.name not in (MANIFEST, FILE):
            path.unlink()
    signed = read_signature(signed_bundle, trusted)
    check_signed(signed_bundle, manifest, signed)
    assert signed.files.keys() == {*manifest.files, MANIFEST}


def test_stale_signature(signed_bundle: Path, trusted: tuple[PublicKey, ...]) -> None:
    """A consistent bundle, under the signature of the one before."""
    replace(signed_bundle, "tokenizer.model", b"other")
    found = hashlib.sha256((signed_bundle / MANIFEST).read_bytes()).hexdigest()
    with pytest.raises(BundleError, match=rf"manifest\.json: sha256 {found} found, .* of another bundle"):
        check_signed(signed_bundle, read_manifest(signed_bundle), read_signature(signed_bundle, trusted))


def test_signature_of_a_tree_without_a_manifest(
    bundle: Path, tree: Path, trusted: tuple[PublicKey, ...]
) -> None:
    shutil.copy(tree / FILE, bundle / FILE)
    with pytest.raises(BundleError, match="None is signed"):
        check_signed(bundle, read_manifest(bundle), read_signature(bundle, trusted))


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda b: (b / "extra.bin").write_bytes(b"x"), r"\['extra.bin'\] found signed, the manifest does"),
        (lambda b: (b / "tokenizer.model").unlink(), r"\['tokenizer.model'\] of the manifest found unsig"),
        (lambda b: (b / "tokenizer.model").write_bytes(b"x"), "tokenizer.model is signed with sha256 2d71"),
    ],
    ids=["extra", "missing", "altered"],
)
def test_signed_over_another_tree(
    bundle: Path, key: Path, trusted: tuple[PublicKey, ...], change: Callable[[Path], Any], expected: str
) -> None:
    """Signed without the checks of `export.publish`: manifest and tree do not agree."""
    change(bundle)
    sign(bundle, open_key(key), bundle / FILE)
    with pytest.raises(BundleError, match=expected):
        check_signed(bundle, read_manifest(bundle), read_signature(bundle, trusted))


@pytest.mark.parametrize(
    "make, expected",
    [
        (lambda: ec.generate_private_key(ec.SECP384R1()), "curve secp384r1 found"),
        (lambda: ec.generate_private_key(ec.SECP256K1()), "curve secp256k1 found"),
        (lambda: rsa.generate_private_key(65537, 2048), "RSAPublicKey found"),
    ],
)
def test_key_of_another_kind(tmp_path: Path, make: Callable[[], Any], expected: str) -> None:
    write_public(tmp_path / "keys" / "k.pem", make().public_key())
    with pytest.raises(BundleError, match=f"k.pem: {expected}, a public ECDSA key on P-256"):
        load_keys(tmp_path / "keys")


def test_private_key_on_a_device(tmp_path: Path) -> None:
    write_key(tmp_path / "release.pem")
    with pytest.raises(BundleError, match=r"release\.pem: a private key found.*delete it"):
        load_keys(tmp_path)


def test_no_keys_and_broken_keys(tmp_path: Path, trusted: tuple[PublicKey, ...]) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(BundleError, match=r"no \*\.pem found, at least one publisher's public key"):
            load_keys(folder)
    write_public(tmp_path / "a.pem", trusted[0].key)
    assert load_keys(tmp_path)[0].fingerprint == trusted[0].fingerprint
    (tmp_path / "b.pem").write_text("-----BEGIN PUBLIC KEY-----\nQQ==\n-----END PUBLIC KEY-----\n")
    with pytest.raises(BundleError, match=r"b\.pem: no public key found"):
        load_keys(tmp_path)
