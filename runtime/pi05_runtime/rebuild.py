"""Engines made again on the device, from the ONNX in the bundle.

A TensorRT engine fits one library version and one chip: a JetPack upgrade makes it useless. The bundle
itself is never changed, since its manifest names every byte; what a device builds lies in a folder of its
own, which says what it was built from and with, and which exists only if the golden sample passed.
"""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from pi05_runtime import golden
from pi05_runtime.build import BuildOptions, build_engine
from pi05_runtime.errors import TargetError
from pi05_runtime.geometry import COMPONENTS, FUSED, PREFIX, Signature, signature
from pi05_runtime.lock import Lock, check_device, installed_version
from pi05_runtime.manifest import Engine, Manifest, onnx_folder, read_manifest
from pi05_runtime.rebuilt import RECORD, Rebuilt, Score, manifest_sha256
from pi05_runtime.staging import staged, write_file
from pi05_runtime.targets import find_target
from pi05_runtime.verify import hash_file, verify


def reason_to_rebuild(manifest: Manifest, target: str) -> str | None:
    """Why this machine cannot run the bundle's own engines for `target`; None if it can.

    Errors: TargetError for a target that builds nothing, or that this machine has no library for.
    """
    library = find_target(target).engine
    if library == "ort":
        raise TargetError(
            f"{target} has no engines of its own to rebuild: it runs the bundle's ONNX as it is"
        )
    if (found := installed_version(library)) is None:
        raise TargetError(f"{library} does not import here: install it, then rebuild {target}")
    if target not in manifest.targets:
        return f"the bundle has no engines for {target}"
    if (built := manifest.targets[target].lock.version) != found:
        return f"its engines were built with {library} {built}, this machine has {found}"
    return None


def rebuild(bundle: Path, target: str, out: Path, options: BuildOptions) -> Rebuilt:
    """Builds the engines of `target`, holds them to the golden sample, and writes them to the folder `out`.

    Errors: BundleError for a damaged bundle, TargetError on a machine without the target's GPU, EngineError
    if no attempt gave an engine, GateError if the golden sample fails. After an error there is no `out`, or
    the one from before.
    """
    manifest = read_manifest(bundle)
    check_device(target)
    library, capability = find_target(target).engine, find_target(target).compute_capability
    lock = Lock(library, str(installed_version(library)), capability)
    networks = manifest.targets[target].engines if target in manifest.targets else COMPONENTS
    signatures = _signatures(manifest)
    with staged(out) as folder:
        engines: dict[str, Engine] = {}
        for network in networks:
            components = FUSED.get(network, (network,))
            variants = {c: _variants(bundle, manifest, target, c) for c in components}
            built = build_engine(
                target,
                variants,
                signatures,
                manifest.prompt_buckets,
                options,
                folder / network,
            )
            engines[network] = Engine(f"{network}/{built.file}", built.recipes, built.attempts, built.layers)
        files = {e.file: hash_file(folder / e.file) for e in engines.values()}
        record = Rebuilt(manifest_sha256(bundle), target, lock, engines, files, ())
        _write(folder, record)
        results = golden.selftest(bundle, target, folder)
        scores = tuple(Score(r.steps, r.cosine, r.threshold) for r in results)
        record = msgspec.structs.replace(record, golden=scores)
        _write(folder, record)
    return record


def _variants(bundle: Path, manifest: Manifest, target: str, component: str) -> list[Path]:
    """The component's verified ONNX folders that the target's chip can hold, the wanted recipe first."""
    has = find_target(target).recipes
    folders = [onnx_folder(component, v.recipe) for v in manifest.components[component] if v.recipe in has]
    if not folders:
        raise TargetError(
            f"{component}: the bundle has it as {[v.recipe for v in manifest.components[component]]}, "
            f"{target} runs {sorted(has)}; export the bundle again with a `fallback` for it"
        )
    names = [n for n in manifest.files for folder in folders if n.startswith(f"{folder}/")]
    verify(bundle, manifest.files, names)
    return [bundle / folder for folder in folders]


def _signatures(manifest: Manifest) -> Mapping[str, Signature]:
    views, horizon = len(manifest.interface.cameras), manifest.interface.horizon
    return {name: signature(name, manifest.geometry, views, horizon) for name in (*COMPONENTS, PREFIX)}


def _write(folder: Path, record: Rebuilt) -> None:
    write_file(folder / RECORD, msgspec.json.format(msgspec.json.encode(record)) + b"\n")
