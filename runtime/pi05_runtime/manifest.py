"""The manifest: what a bundle is, for whom, and the exact bytes it consists of.

Everything a device needs to decide whether to trust and how to run a bundle is here, typed and
versioned; `json_schema` emits the JSON Schema of it. There is no timestamp, so that the same inputs
give the same manifest.
"""

from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from pi05_runtime.errors import BundleError
from pi05_runtime.geometry import COMPONENTS, Geometry
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
    """The calibration set: a hash over its observations and images, and how many there are."""

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
    """manifest.json. File names are relative to the bundle, with forward slashes.

    exported_with: library -> version. prompt_buckets: the lengths a prompt is padded to, ascending.
    steps: Euler step counts that the schedule has. gates: target -> gate -> result. files: all but the
    manifest itself.
    """

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
    exported_with: dict[str, str]
    calibration: Calibration
    gates: dict[str, dict[str, Gate]]
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
    """Reads and checks bundle/manifest.json, and no other file.

    Errors: BundleError naming the field, the version, or what in the manifest contradicts itself.
    """
    path = bundle / FILE
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"{path}: no manifest found ({error.strerror}), expected one in every bundle; check the path, "
            "or copy the bundle again"
        ) from error
    try:
        found = msgspec.json.decode(data, type=_Version).schema
        if found != SCHEMA:
            advice = "update pi05-runtime" if found > SCHEMA else "export the bundle again"
            raise BundleError(f"{path}: schema {found} found, this runtime reads {SCHEMA}; {advice}")
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: {error}; copy the bundle again") from error
    if contradiction := _contradiction(manifest):
        raise BundleError(f"{path}: {contradiction}; export the bundle again")
    return manifest


def _contradiction(m: Manifest) -> str | None:
    """The first thing that no exporter writes and that types cannot exclude."""
    for name in m.files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            return f"files: {name!r} found, only names inside the bundle expected"
    shared = {m.tokenizer, m.token_embedding, m.schedule, m.golden.file}
    for target, entry in m.targets.items():
        if set(entry.engines) != set(COMPONENTS):
            return f"targets.{target}.engines: {sorted(entry.engines)} found, {list(COMPONENTS)} expected"
        if missing := shared.union(entry.engines.values()) - set(entry.files):
            return f"targets.{target}.files: lacks {sorted(missing)}, which this target loads"
        if missing := set(entry.files) - m.files.keys():
            return f"files: lacks {sorted(missing)}, which target {target} names"
    if missing := {m.default_steps, *m.golden.steps} - set(m.steps):
        return f"steps: {list(m.steps)} found, {sorted(missing)} expected too"
    if not m.golden.steps:
        return "golden.steps: none found, at least one expected, or a self-test would test nothing"
    if not m.prompt_buckets or list(m.prompt_buckets) != sorted(m.prompt_buckets):
        return f"prompt_buckets: {list(m.prompt_buckets)} found, ascending lengths expected"
    return None
