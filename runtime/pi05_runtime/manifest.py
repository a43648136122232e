"""The manifest: what a bundle is, for whom, and the exact bytes it consists of.

Everything a device needs to decide whether to trust and how to run a bundle is here, typed and
versioned; `json_schema` emits the JSON Schema of it. There is no timestamp, so that the same inputs
give the same manifest.
"""

from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import msgspec

from pi05_runtime.build import Attempt
from pi05_runtime.errors import BundleError
from pi05_runtime.geometry import Geometry, decision_networks
from pi05_runtime.interface import Interface
from pi05_runtime.lock import Lock
from pi05_runtime.targets import Recipe, find_target

SCHEMA = 2
FILE = "manifest.json"
ONNX_FILES = ("bf16.onnx", "weights.bin", "table.json")
"""What an engine is built from."""
Judged = Literal["engine", "twin"]
"""What a gate was measured on: the engine, or, where it was built for a chip that the exporter did not
have, the fp32 twin of its ONNX on a CPU. Codes and scales are the same bytes; the golden sample judges the
engine itself, on its device."""


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """size in bytes; sha256 in hex."""

    size: int
    sha256: str


class Variant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A component's ONNX in one recipe, in onnx/<component>/<recipe>. quantized: share of its linear
    weights that the recipe quantizes. keep: layers it leaves in bf16 by name."""

    recipe: Recipe
    keep: tuple[str, ...]
    quantized: float


class EngineFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """file: what the backend loads. recipes: of each component in it. attempts: the rungs that the
    builder tried, the last of which gave this engine; none where nothing had to be built. layers: the
    linear layers by the precision that the engine runs them in, where the engine can tell."""

    file: str
    recipes: dict[str, str]
    attempts: tuple[Attempt, ...]
    layers: dict[str, int]


class TargetFiles(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A target of the bundle. engines: what a decision runs, the three components or `prefix` and `denoise`
    -> engine. files: all that the target needs to act, shared files included. lock: what its engines were
    built with, and need."""

    engines: dict[str, EngineFile]
    files: tuple[str, ...]
    lock: Lock


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
    judged: Judged


class ClosedLoop(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A target's engines acting in a simulator, beside the BF16 reference in the same scenes from the same
    noise.

    scenes: of all tasks together. successes: scenes that the engines solved. lost, won: scenes that only the
    reference, and that only the engines solved. divergence: the 99th percentile, over all decisions of the
    reference, of the mean absolute difference of the executed actions, in the robot's units. The last three
    are the thresholds; the first two of them are shares of the scenes, largest_loss of lost less won.
    """

    suite: str
    tasks: tuple[str, ...]
    scenes: int
    successes: int
    lost: int
    won: int
    divergence: float
    judged: Judged
    least_success: float
    largest_loss: float
    largest_divergence: float


class Golden(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Golden sample. cosine: recipe -> the least that a self-test accepts against the stored actions, of
    engines of which that is the coarsest. budget_ms: target -> the most milliseconds that the median decision
    of a self-test may take; a target without an entry has no budget."""

    file: str
    prompt: str
    steps: tuple[int, ...]
    cosine: dict[Recipe, float]
    budget_ms: dict[str, float]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """manifest.json. File names are relative to the bundle, with forward slashes.

    exported_with: library -> version. prompt_buckets: the lengths a prompt is padded to, ascending.
    steps: Euler step counts that the schedule has. components: each with its ONNX variants, the wanted
    recipe first. gates: target -> gate -> result. files: all but the manifest itself. closed_loop: of the
    targets whose engines acted before they were bundled.
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
    components: dict[str, tuple[Variant, ...]]
    exported_with: dict[str, str]
    calibration: Calibration
    gates: dict[str, dict[str, Gate]]
    golden: Golden
    tokenizer: str
    token_embedding: str
    schedule: str
    targets: dict[str, TargetFiles]
    files: dict[str, File]
    closed_loop: dict[str, ClosedLoop] = {}


def onnx_folder(component: str, recipe: str) -> str:
    """Where a bundle keeps a component's ONNX: ONNX_FILES, and the CPU's twin fp32.onnx."""
    return f"onnx/{component}/{recipe}"


def build_files(manifest: Manifest, target: str) -> set[str]:
    """What the engines of `target` can be built from: its ONNX in each recipe that the chip has."""
    has = find_target(target).recipes
    return {
        f"{onnx_folder(component, variant.recipe)}/{name}"
        for component, variants in manifest.components.items()
        for variant in variants
        if variant.recipe in has
        for name in ONNX_FILES
    }


def shared_files(manifest: Manifest) -> set[str]:
    """What every target loads beside its engines."""
    return {manifest.tokenizer, manifest.token_embedding, manifest.schedule, manifest.golden.file}


def names_outside(names: Collection[str]) -> list[str]:
    """Of file names relative to a folder, those that lead out of it."""
    paths = map(PurePosixPath, names)
    return [str(path) for path in paths if path.is_absolute() or ".." in path.parts]


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
    if found := contradiction(manifest):
        raise BundleError(f"{path}: {found}; export the bundle again")
    return manifest


def contradiction(m: Manifest) -> str | None:
    """The first thing that no exporter may write and that types cannot exclude."""
    if outside := names_outside(m.files):
        return f"files: {outside[0]!r} found, only names inside the bundle expected"
    shared = shared_files(m)
    for target, entry in m.targets.items():
        if set(entry.engines) != set(expected := decision_networks(entry.engines)):
            return f"targets.{target}.engines: {sorted(entry.engines)} found, {list(expected)} expected"
        if missing := shared.union(e.file for e in entry.engines.values()) - set(entry.files):
            return f"targets.{target}.files: lacks {sorted(missing)}, which this target loads"
        if missing := set(entry.files) - m.files.keys():
            return f"files: lacks {sorted(missing)}, which target {target} names"
    for component, variants in m.components.items():
        if (
            missing := {
                name
                for variant in variants
                for name in (f"{onnx_folder(component, variant.recipe)}/{file}" for file in ONNX_FILES)
            }
            - m.files.keys()
        ):
            return f"files: lacks {sorted(missing)} of components.{component}"
        if missing := {variant.recipe for variant in variants} - m.golden.cosine.keys():
            return f"golden.cosine: lacks {sorted(missing)}, recipes of components.{component}"
    if missing := {m.default_steps, *m.golden.steps} - set(m.steps):
        return f"steps: {list(m.steps)} found, {sorted(missing)} expected too"
    if not m.golden.steps:
        return "golden.steps: none found, at least one expected, or a self-test would test nothing"
    if not m.prompt_buckets or list(m.prompt_buckets) != sorted(m.prompt_buckets):
        return f"prompt_buckets: {list(m.prompt_buckets)} found, ascending lengths expected"
    return None
