"""Publishes artifacts/bundle: checked, signed, uploaded as one commit, looked at again, and tagged.

`python -m export.publish --repo OWNER/NAME --key KEY.pem`; no stage, since it changes the world outside.
docs/publish.md says how to make the key. The bundle's folder stays as DVC knows it: card and signature are
made beside it.
"""

import argparse
import tempfile
from pathlib import Path

import msgspec

from export.artifacts import BUNDLE
from export.card import model_card
from export.gates import GATES, shortfalls
from export.hub import LocalFile, PublishError, Repository, differing
from export.signing import CARD, UNSIGNED, SigningKey, open_key, sign
from export.stage import run_stage
from pi05_runtime.errors import BundleError, GateError
from pi05_runtime.manifest import FILE as MANIFEST
from pi05_runtime.manifest import Manifest, read_manifest
from pi05_runtime.signature import FILE as SIGNATURE
from pi05_runtime.signature import check_signed, read_signature
from pi05_runtime.verify import hash_file, verify

REPRO = "run `dvc repro`"
AGAIN = "run the command again"


def check_bundle(bundle: Path) -> Manifest:
    """The manifest of a bundle whose tree is exactly what it says and whose gates all passed.

    Errors: BundleError naming files, GateError naming gates.
    """
    manifest = read_manifest(bundle)
    present = {
        p.relative_to(bundle).as_posix(): p for p in bundle.rglob("*") if p.is_symlink() or not p.is_dir()
    }
    if linked := sorted(name for name, path in present.items() if path.is_symlink()):
        raise BundleError(
            f"{bundle}: {linked} found as symbolic links, regular files expected; run `dvc config "
            "cache.type hardlink,copy`, then `dvc checkout --relink`"
        )
    if extra := sorted(present.keys() - manifest.files.keys() - {MANIFEST}):
        raise BundleError(
            f"{bundle}: {extra} found, the manifest does not name them; remove them, or {REPRO}"
        )
    verify(bundle, manifest.files, manifest.files, advice=REPRO)
    for target in manifest.targets:
        gates = manifest.gates.get(target, {})
        if missing := [name for name in GATES if name not in gates]:
            raise GateError(
                f"{target}: no result of the gates {missing}, all of {list(GATES)} expected; {REPRO}"
            )
        for name, gate in gates.items():
            if not gate.cosine >= gate.threshold:
                raise GateError(
                    f"{target}: gate {name} has cosine {gate.cosine:.6f}, at least {gate.threshold} "
                    f"expected; choose a finer recipe in params.yaml, then {REPRO}"
                )
    for target, acted in manifest.closed_loop.items():
        if short := shortfalls(acted):
            raise GateError(
                f"{target}: in closed loop, {'; '.join(short)}; choose a finer recipe in params.yaml, then "
                f"{REPRO}"
            )
    return manifest


class Release(msgspec.Struct, frozen=True):
    """A checked bundle and who signs it. files: by their name in the repository."""

    bundle: Path
    manifest: Manifest
    key: SigningKey
    files: dict[str, LocalFile]

    @property
    def tag(self) -> str:
        return f"v{self.manifest.version}"


def prepare(bundle: Path, key: Path) -> Release:
    """All that can be refused before the Hub is asked. Errors: BundleError, GateError, KeyFileError."""
    manifest = check_bundle(bundle)
    files = {name: LocalFile(bundle / name, file) for name, file in manifest.files.items()}
    files[MANIFEST] = LocalFile(bundle / MANIFEST, hash_file(bundle / MANIFEST))
    return Release(bundle, manifest, open_key(key), files)


def publish(release: Release, repository: Repository) -> None:
    """Uploads the release, unless it is there already, and says what travelled.

    Errors: PublishError if its version is there with other contents or from another signer, or if it did
    not arrive whole.
    """
    name, manifest, signer = repository.name, release.manifest, release.key.public
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if (published := repository.tagged(release.tag)) is not None:
            check_published(release, repository, published, scratch)
            print(f"publish: {name} has {release.tag} already, commit {published}; nothing travelled")
            return
        (scratch / CARD).write_text(model_card(manifest, name, signer.fingerprint))
        sign(release.bundle, release.key, scratch / SIGNATURE)
        check_signed(release.bundle, manifest, read_signature(scratch, [signer]))
        beside = {file: LocalFile(scratch / file, hash_file(scratch / file)) for file in UNSIGNED}
        files = {**release.files, **beside}
        parent = repository.head()
        before = repository.tree(parent)
        sent, removed = differing(files, before), sorted(before.keys() - files.keys())
        message = f"{manifest.name} {manifest.version}"
        commit = repository.commit({file: files[file] for file in sent}, removed, message, parent)
        after = repository.tree(commit)
        wrong = [*differing(files, after), *sorted(after.keys() - files.keys())]
    if wrong:
        raise PublishError(
            f"{name}: {wrong} of commit {commit} arrived otherwise than sent; no tag was made: {AGAIN}"
        )
    repository.tag(release.tag, commit)
    print("\n".join([*(f"  sent     {file}" for file in sent), *(f"  removed  {file}" for file in removed)]))
    size = sum(files[file].file.size for file in sent) / 1e6
    print(
        f"publish: {name} {release.tag}, commit {commit}, signed by {signer.fingerprint}; {len(sent)} of "
        f"{len(files)} files differed and travelled, at most {size:.1f} MB"
    )


def check_published(release: Release, repository: Repository, commit: str, scratch: Path) -> None:
    """Whether the commit of the release's tag is this very release. Errors: PublishError."""
    name, tag, signer = repository.name, release.tag, release.key.public
    other = f"raise bundle.version in params.yaml, then {REPRO}"
    tree = repository.tree(commit)
    unknown = tree.keys() - release.files.keys() - set(UNSIGNED)
    if wrong := [*differing(release.files, tree), *sorted(unknown)]:
        raise PublishError(
            f"{name}: {tag} exists and differs in {wrong}, the same contents expected: robots rely on what a "
            f"version is; {other}"
        )
    if SIGNATURE in tree:
        repository.fetch(SIGNATURE, commit, scratch)
    try:
        check_signed(release.bundle, release.manifest, read_signature(scratch, [signer]))
    except BundleError as error:
        raise PublishError(
            f"{name}: {tag} exists and is not signed by {signer.fingerprint}: {error}. To sign with this "
            f"key, {other}"
        ) from error


def main(*arguments: str) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m export.publish", description="Publishes artifacts/bundle."
    )
    parser.add_argument(
        "--repo", required=True, metavar="OWNER/NAME", help="on the Hub; made if it is not there"
    )
    parser.add_argument("--key", required=True, type=Path, help="private key in PEM form (docs/publish.md)")
    parser.add_argument("--private", action="store_true", help="the repository is to be a private one")
    asked = parser.parse_args(arguments)
    release = prepare(BUNDLE, asked.key)
    publish(release, Repository(asked.repo, asked.private))


if __name__ == "__main__":
    run_stage(main)
