"""The manifest: what a bundle is, for whom, and the exact bytes it consists of.

Everything a device needs to decide whether to trust and how to run a bundle is here, typed and
versioned; `json_schema` emits the JSON Schema of it. There is no timestamp, so that the same inputs
give the same manifest.
"""

from pathlib import Path
from typing import Any

import msgspec

from pi05_runtime.errors import BundleError
from pi05_runtime.geometry import Geometry
from pi05_runtime.interface import Interface

SCHEMA = 1
FILE = "manifest.json"


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """size in bytes; sha256 in hex."""

    size: int
    sha256: str


class Component(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a component was quantized. quantized: share of its linear weights. keep: named exceptions."""

    recipe: str
    keep: tuple[str, ...]
    quantized: float


class TargetFiles(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A target of the bundle. engines: component -> file to load. files: all that the target needs,
    shared files included. built_with: library -> exact version."""

    engines: dict[str, str]
    files: tuple[str, ...]
    built_with: dict[str, str]


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sha256: str
    observations: int


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The checkpoint: its layout, and its files' sha256."""

    layout: str
    files: dict[str, str]


class Gate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One measured gate. cosine: the smallest over the held-out observations."""

    cosine: float
    threshold: float


class Golden(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Golden sample. cosine: the least that a self-test accepts against the stored actions."""

    file: str
    prompt: str
    steps: tuple[int, ...]
    cosine: float


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: int
    name: str
    version: str
    license: str
    source: Source
    geometry: Geometry
    interface: Interface
    prompt_buckets: tuple[int, ...]
    steps: tuple[int, ...]
    default_steps: int
    components: dict[str, Component]
    calibration: Calibration
    gates: dict[str, dict[str, Gate]]
    """target -> gate -> result."""
    golden: Golden
    tokenizer: str
    token_embedding: str
    schedule: str
    targets: dict[str, TargetFiles]
    files: dict[str, File]


class _Version(msgspec.Struct):
    schema: int


def json_schema() -> dict[str, Any]:
    """JSON Schema of the manifest."""
    return msgspec.json.schema(Manifest)


def encode(manifest: Manifest) -> bytes:
    """The manifest's bytes: indented, keys in the order of the structs, a newline at the end."""
    return msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=2) + b"\n"


def read_manifest(bundle: Path) -> Manifest:
    """Reads and checks bundle/manifest.json. Errors: BundleError naming the field or the version."""
    path = bundle / FILE
    try:
        data = path.read_bytes()
    except OSError:
        raise BundleError(f"{path} not found: {bundle} is not a bundle; pull it again") from None
    try:
        found = msgspec.json.decode(data, type=_Version).schema
        if found != SCHEMA:
            advice = "update pi05-runtime" if found > SCHEMA else "export the bundle again"
            raise BundleError(f"{path}: schema {found} found, this runtime reads {SCHEMA}: {advice}")
        return msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        raise BundleError(f"{path}: {error}; pull the bundle again") from None
