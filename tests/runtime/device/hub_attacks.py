"""What a hoster may do to a bundle that a robot does not have yet: each as a function of scene and Hub."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from export.signing import open_key, sign
from pi05_runtime.errors import NetworkError
from pi05_runtime.manifest import FILE as MANIFEST
from pi05_runtime.signature import FILE as SIGNATURE
from tests.hub.faults import Corrupt
from tests.hub.wire import Hub
from tests.runtime.bundle_edits import edited, onnx_file, replace
from tests.runtime.device.attack import ANOTHER_MANIFEST, UNKNOWN, Attack, flipped, weights
from tests.runtime.device.scene import ACTIVE, NEW, PREVIOUS, TESTED, Scene
from tests.runtime.device.stores import REPO, write_keys
from tests.runtime.test_signature import edit_envelope, edit_statement, resources

DAMAGED_ON_ITS_WAY = "weights.bin: ... bytes with sha256 ... arrived, ... expected: damaged on its way, twice"
GARBAGE = "model.sig: damaged: JSON is malformed"
OLDER = "version ... found under the tag ..., ... expected"
SCHEMA = "schema ... found, this runtime reads ...; update pi05-runtime"
UNFIT = "the signature of key ... does not fit the list of files beside it"


def serve(hub: Hub, name: str, data: bytes | None) -> None:
    """Other contents for a file of the new commit, or none, as only the hoster can."""
    repo = hub.store.read(REPO)
    tree = repo.commits[repo.tags[f"v{NEW}"]]
    del tree[name]
    if data is not None:
        tree[name] = hub.store.put(data)
    hub.store.write(REPO, repo)


def served(hub: Hub, name: str, version: str = NEW) -> bytes:
    return hub.store.blob(hub.store.entry(REPO, f"v{version}", name).sha256).read_bytes()


def serve_bundle(scene: Scene, hub: Hub, key: Path, then: Callable[[Path], object] | None = None) -> None:
    """The publisher's folder as it is now, signed. then: what is done to it afterwards."""
    sign(scene.bundle, open_key(key), scene.bundle / SIGNATURE)
    if then is not None:
        then(scene.bundle)
    for path in scene.bundle.rglob("*"):
        if path.is_file():
            name = path.relative_to(scene.bundle).as_posix()
            serve(hub, name, path.read_bytes())


def change_weights(scene: Scene, hub: Hub, change: Callable[[bytes], bytes | None]) -> None:
    name = weights(scene.bundle)
    serve(hub, name, change(served(hub, name)))


def other_weights(scene: Scene, hub: Hub) -> None:
    serve(hub, weights(scene.bundle), served(hub, weights(scene.bundle), TESTED))


def swap_components(scene: Scene, hub: Hub) -> None:
    names = [onnx_file(scene.bundle, component, "weights.bin") for component in ("vision", "denoise")]
    first, second = (served(hub, name) for name in names)
    serve(hub, names[0], second)
    serve(hub, names[1], first)


def replace_manifest(scene: Scene, hub: Hub) -> None:
    name = weights(scene.bundle)
    replace(scene.bundle, name, flipped((scene.bundle / name).read_bytes()))
    serve(hub, name, (scene.bundle / name).read_bytes())
    serve(hub, MANIFEST, (scene.bundle / MANIFEST).read_bytes())


def traverse(scene: Scene) -> None:
    with edited(scene.bundle) as manifest:
        manifest["files"]["../evil"] = manifest["files"][manifest["tokenizer"]]


def traverse_unsigned(scene: Scene, hub: Hub) -> None:
    traverse(scene)
    serve(hub, MANIFEST, (scene.bundle / MANIFEST).read_bytes())


def traverse_signed(scene: Scene, hub: Hub) -> None:
    traverse(scene)
    serve_bundle(scene, hub, scene.key)


def newer_schema(scene: Scene, hub: Hub) -> None:
    with edited(scene.bundle) as manifest:
        manifest["schema"] += 1
    serve_bundle(scene, hub, scene.key)


def sign_as(scene: Scene, hub: Hub, edit: Callable[[dict[str, Any]], object], again: bool) -> None:
    """The list of signed files edited, and signed again by the trusted key or not."""
    key = scene.key if again else None
    serve_bundle(scene, hub, scene.key, then=lambda tree: edit_statement(tree, edit, key))


def older_version(scene: Scene, hub: Hub) -> None:
    repo = hub.store.read(REPO)
    repo.tags[f"v{NEW}"] = repo.tags[f"v{PREVIOUS}"]
    hub.store.write(REPO, repo)


def stranger(scene: Scene, hub: Hub) -> None:
    serve_bundle(scene, hub, write_keys(scene.folder / "elsewhere", "stranger"))


def impostor(scene: Scene, hub: Hub) -> None:
    key = open_key(scene.key).public.fingerprint

    def claim(envelope: dict[str, Any]) -> None:
        envelope["verificationMaterial"]["publicKey"]["hint"] = key

    other = write_keys(scene.folder / "elsewhere", "stranger")
    serve_bundle(scene, hub, other, then=lambda tree: edit_envelope(tree, claim))


def not_a_commit(scene: Scene, hub: Hub) -> None:
    repo = hub.store.read(REPO)
    repo.commits["main"] = repo.commits[repo.tags[f"v{NEW}"]]
    repo.tags[f"v{NEW}"] = "main"
    hub.store.write(REPO, repo)


def spoil_what_is_active(scene: Scene, hub: Hub) -> None:
    """The active bundle's own manifest, which a careless puller would write over it with this signature."""
    serve(hub, MANIFEST, served(hub, MANIFEST, ACTIVE))
    serve(hub, SIGNATURE, b"{}")


def serve_signature(data: bytes | None) -> Callable[[Scene, Hub], None]:
    return lambda scene, hub: serve(hub, SIGNATURE, data)


ON_THE_HUB = (
    Attack("a byte of the weights flipped", DAMAGED_ON_ITS_WAY, lambda s, h: change_weights(s, h, flipped)),
    Attack("weights of the version before, of the same size", DAMAGED_ON_ITS_WAY, other_weights),
    Attack(
        "weights cut by one byte",
        "weights.bin: ends before the size that the manifest states",
        lambda s, h: change_weights(s, h, lambda data: data[:-1]),
        NetworkError,
    ),
    Attack(
        "weights longer than the manifest says",
        "weights.bin: more than its ... bytes sent",
        lambda s, h: change_weights(s, h, lambda data: data + bytes(1 << 20)),
        NetworkError,
    ),
    Attack(
        "weights missing",
        "weights.bin: not found",
        lambda s, h: change_weights(s, h, lambda _: None),
        NetworkError,
    ),
    Attack(
        "weights of two components swapped",
        "weights.bin: ends before the size that the manifest states",
        swap_components,
        NetworkError,
    ),
    Attack(
        "a bit turned in every download",
        DAMAGED_ON_ITS_WAY,
        lambda s, h: h.faults.append(Corrupt("/cdn/", times=99)),
    ),
    Attack("the manifest replaced, to fit other weights", ANOTHER_MANIFEST, replace_manifest),
    Attack(
        "a manifest of more than 64 MiB",
        "over 67108864 bytes sent; this is no bundle",
        lambda s, h: serve(h, MANIFEST, bytes((64 << 20) + 1)),
        NetworkError,
    ),
    Attack("a manifest with names outside the bundle", ANOTHER_MANIFEST, traverse_unsigned),
    Attack(
        "the same, signed by a trusted key",
        "files: '../evil' found, only names inside the bundle expected",
        traverse_signed,
    ),
    Attack(
        "a manifest of a newer schema, signed by a trusted key",
        SCHEMA,
        newer_schema,
    ),
    Attack("no signature", "model.sig: not found", serve_signature(None), NetworkError),
    Attack("an empty signature", "model.sig: damaged: Input data was truncated", serve_signature(b"")),
    Attack("garbage for a signature", GARBAGE, serve_signature(b"\x00\xff" * 100)),
    Attack(
        "a signature nested a hundred thousand deep",
        "model.sig: damaged: maximum recursion depth exceeded",
        serve_signature(b'{"a":' + b"[" * 100_000),
    ),
    Attack(
        "a signature of 17 MB",
        "more than 16777216 bytes found, a signature expected",
        serve_signature(bytes(17 << 20)),
    ),
    Attack(
        "the signature of the version before",
        ANOTHER_MANIFEST,
        lambda s, h: serve(h, SIGNATURE, served(h, SIGNATURE, TESTED)),
    ),
    Attack("an older version under a newer tag", OLDER, older_version),
    Attack("all signed by a stranger", UNKNOWN, stranger),
    Attack("all signed by a stranger under a trusted key's name", UNFIT, impostor),
    Attack(
        "the list of signed files edited",
        UNFIT,
        lambda s, h: sign_as(s, h, lambda signed: resources(signed).pop(), again=False),
    ),
    Attack(
        "names outside the bundle in the signature, signed by a trusted key",
        "'../evil' found signed, only plain names inside the bundle expected",
        lambda s, h: sign_as(s, h, lambda x: resources(x)[0].update(name="../evil"), again=True),
    ),
    Attack(
        "a branch's name for a commit", "'main' found, 40 hex digits expected", not_a_commit, NetworkError
    ),
    Attack(
        "the active bundle's manifest with another signature",
        "model.sig: damaged: Object missing required field",
        spoil_what_is_active,
    ),
)
