"""The publisher's side of a signature: the stock library signs, with a key that stays out of reach.

model-signing is imported where it signs: it brings some forty packages, of which a stage needs none.
"""

import stat
from pathlib import Path

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from pi05_runtime.errors import Pi05Error
from pi05_runtime.signature import CURVE, FILE, PublicKey, public_key

CARD = "README.md"
UNSIGNED = (CARD, FILE)
"""What lies in a published tree unsigned: people edit a card, and a signature cannot cover itself. Both
names are signed as such, so that the stock verifier leaves them out by itself."""
MAKE = "docs/publish.md says how to make one"


class KeyFileError(Pi05Error):
    """A private key of the wrong kind, or one that others may read."""


class SigningKey(msgspec.Struct, frozen=True):
    """A private key's file, and its public half."""

    path: Path
    public: PublicKey


def open_key(path: Path) -> SigningKey:
    """A private key that is fit to sign with.

    Errors: KeyFileError unless it is an ECDSA key on P-256, in a file of its owner alone, outside any
    repository's work tree.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        data = path.read_bytes()
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}, a private key expected; {MAKE}") from error
    if mode & 0o077:
        raise KeyFileError(
            f"{path}: mode {mode:03o} found, 600 expected: whoever reads the key can sign engines that every "
            f"robot runs. Run `chmod 600 {path}`; if others had it, make a new key"
        )
    if tree := _work_tree(path):
        raise KeyFileError(
            f"{path}: inside the repository {tree}, a place outside any expected: the next `git add` would "
            "publish the key. Move it, for example to ~/.config/pi05"
        )
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError as error:
        raise KeyFileError(
            f"{path}: an encrypted key found, a plain one expected: model-signing 1.1.1 opens no other. "
            "Decrypt it onto a memory file system for as long as it is needed"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyFileError(f"{path}: no private key in PEM form found, one expected; {MAKE}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != CURVE:
        found = key.curve.name if isinstance(key, ec.EllipticCurvePrivateKey) else type(key).__name__
        raise KeyFileError(f"{path}: {found} found, an ECDSA key on P-256 ({CURVE}) expected; {MAKE}")
    return SigningKey(path, public_key(key.public_key()))


def sign(bundle: Path, key: SigningKey, signature: Path) -> None:
    """Signs every file of `bundle` but UNSIGNED into the file `signature`. Errors: KeyFileError without
    model-signing."""
    try:
        from model_signing import hashing, signing
    except ImportError as error:
        raise KeyFileError(
            f"nothing to sign with: {error}; run `pip install --constraint constraints.txt --group publish`"
        ) from error
    files = hashing.Config().set_ignored_paths(paths=UNSIGNED)
    config = signing.Config().use_elliptic_key_signer(private_key=key.path).set_hashing_config(files)
    config.sign(bundle, signature)


def _work_tree(path: Path) -> Path | None:
    """The repository that the file, or what it links to, lies in."""
    folders = (*path.absolute().parents, *path.resolve().parents)
    return next((folder for folder in folders if (folder / ".git").exists()), None)
