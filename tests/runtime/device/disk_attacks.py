"""What somebody who can write to a robot's disk may do.

To a bundle's folder, as a function of it and the scene; or beside the bundles, of the scene.
"""

import shutil
from pathlib import Path

from export.signing import open_key, sign
from pi05_runtime.errors import DeviceError, TargetError
from pi05_runtime.manifest import FILE as MANIFEST
from pi05_runtime.signature import FILE as SIGNATURE
from tests.pipeline import TARGET
from tests.runtime.bundle_edits import onnx_file, replace
from tests.runtime.device.attack import ANOTHER_MANIFEST, UNKNOWN, Attack, flipped, weights
from tests.runtime.device.scene import ACTIVE, PREVIOUS, TESTED, Scene
from tests.runtime.device.stores import write_keys


def put(path: Path, data: bytes) -> None:
    """As a new file: the old one is linked into other bundles too."""
    path.unlink()
    path.write_bytes(data)


def link(path: Path, scene: Scene) -> None:
    path.rename(scene.folder / "moved")
    path.symlink_to(scene.folder / "moved")


def swap(folder: Path) -> None:
    first, second = (
        folder / onnx_file(folder, component, "fp32.onnx") for component in ("vision", "denoise")
    )
    first.rename(folder / "first")
    second.rename(first)
    (folder / "first").rename(second)


def extra(path: Path, mode: int) -> None:
    path.write_bytes(b"\x7fELF")
    path.chmod(mode)


def other_engine(folder: Path) -> None:
    """Everything but the signature fits."""
    name = weights(folder)
    data = (folder / name).read_bytes()
    (folder / name).unlink()
    replace(folder, name, flipped(data))


def signed_by_a_stranger(folder: Path, scene: Scene) -> None:
    sign(scene.bundle, open_key(write_keys(scene.folder / "elsewhere", "stranger")), folder / SIGNATURE)


FLIPPED = "sha256 ... found, ... expected: the file was damaged or changed after it was made"
LINK = "a symbolic link to ... found, a regular file expected"

ON_THE_DEVICE = (
    Attack(
        "a byte of the weights flipped",
        FLIPPED,
        lambda f, s: put(f / weights(f), flipped((f / weights(f)).read_bytes())),
    ),
    Attack(
        "weights of another version, of the same size",
        FLIPPED,
        lambda f, s: put(f / weights(f), (s.bundle / weights(f)).read_bytes()),
    ),
    Attack(
        "the token table cut by one byte",
        "token_embedding.bin: ... bytes found, ... expected",
        lambda f, s: put(f / "token_embedding.bin", (f / "token_embedding.bin").read_bytes()[:-1]),
    ),
    Attack(
        "weights missing",
        "weights.bin: no file found, one expected",
        lambda f, s: (f / weights(f)).unlink(),
    ),
    Attack(
        "ONNX of two components swapped", "fp32.onnx: ... bytes found, ... expected", lambda f, s: swap(f)
    ),
    Attack("a link in place of a file", LINK, lambda f, s: link(f / "token_embedding.bin", s)),
    Attack("a link in place of a folder", LINK, lambda f, s: link(f / "onnx", s)),
    Attack(
        "a byte added to the manifest",
        ANOTHER_MANIFEST,
        lambda f, s: put(f / MANIFEST, (f / MANIFEST).read_bytes() + b"\n"),
    ),
    Attack("weights and manifest replaced together", ANOTHER_MANIFEST, lambda f, s: other_engine(f)),
    Attack("no manifest", "no manifest found", lambda f, s: (f / MANIFEST).unlink()),
    Attack("no signature", "model.sig: no signature found", lambda f, s: (f / SIGNATURE).unlink()),
    Attack(
        "the signature of another version",
        ANOTHER_MANIFEST,
        lambda f, s: put(f / SIGNATURE, (s.store.bundle(s.ids[PREVIOUS]) / SIGNATURE).read_bytes()),
    ),
    Attack("a stranger's signature", UNKNOWN, signed_by_a_stranger),
)

UNNAMED = "found, which the manifest does not name"
MORE_ON_THE_DEVICE = (
    Attack("a file more", f"['notes.txt'] {UNNAMED}", lambda f, s: extra(f / "notes.txt", 0o644)),
    Attack("an executable more", f"['onnx/run'] {UNNAMED}", lambda f, s: extra(f / "onnx" / "run", 0o755)),
    Attack("a link to a folder more", f"['etc'] {UNNAMED}", lambda f, s: (f / "etc").symlink_to("/etc")),
)
"""Verifying refuses these; loading opens what the manifest names and nothing else."""


def name_active(scene: Scene, id: str) -> None:
    scene.store.slots.write_text(f'{{"active": "{id}"}}')


def untested(scene: Scene) -> None:
    store, id = scene.store, scene.ids[TESTED]
    store.write_record(store.record(id).at("verified"))
    name_active(scene, id)


def other_chip(scene: Scene) -> None:
    path = scene.store.records / f"{scene.ids[ACTIVE]}.json"
    path.write_bytes(path.read_bytes().replace(TARGET.encode(), b"sm110-trt"))


def other_key(scene: Scene) -> None:
    shutil.rmtree(scene.store.keys)
    write_keys(scene.store.keys, "stranger")


BESIDE_THE_BUNDLES = (
    Attack(
        "a bundle named active that was not tested", "is verified, tested expected", untested, DeviceError
    ),
    Attack(
        "a bundle named active that is not there",
        "no bundle '../../evil' on this device",
        lambda s: name_active(s, "../../evil"),
        DeviceError,
    ),
    Attack(
        "slots.json cut",
        "slots.json: Input data was truncated; activate a bundle again",
        lambda s: s.store.slots.write_bytes(s.store.slots.read_bytes()[:-1]),
        DeviceError,
    ),
    Attack("another chip's target in the record", "has no target 'sm110-trt'", other_chip, TargetError),
    Attack("another trusted key", UNKNOWN, other_key),
    Attack("no trusted key", "no *.pem found", lambda s: shutil.rmtree(s.store.keys)),
)
