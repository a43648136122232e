"""Engines made again on the device, from the ONNX in the bundle.

A TensorRT engine fits one library version and one chip: a JetPack upgrade makes it useless. The bundle
itself is never changed, since its manifest names every byte; what a device builds lies in a folder of its
own, which says what it was built from and with, and which exists only if the golden sample passed.
"""

from pathlib import Path

import msgspec

from pi05_runtime import golden
from pi05_runtime.build import BuildOptions, Built, build_engine
from pi05_runtime.errors import BundleError, Pi05Error, TargetError
from pi05_runtime.geometry import COMPONENTS, FUSED, signatures
from pi05_runtime.lock import Lock, check_device, installed_version
from pi05_runtime.manifest import (
    EngineFile,
    Manifest,
    build_files,
    onnx_folder,
    read_manifest,
    shared_files,
)
from pi05_runtime.policy import Policy
from pi05_runtime.rebuilt import RECORD, Rebuilt, Score, manifest_sha256
from pi05_runtime.staging import staged
from pi05_runtime.targets import find_target
from pi05_runtime.verify import hash_file, verify


def reason_to_rebuild(bundle: Path, target: str) -> str | None:
    """Why this machine cannot run the bundle's own engines for `target`; None if they pass their self-test.

    Errors: BundleError for no bundle, TargetError for a target that builds nothing, or that this machine has
    no library or GPU for.
    """
    manifest, wanted = read_manifest(bundle), find_target(target)
    if not wanted.from_onnx:
        raise TargetError(
            f"{target} has no engines that a device can rebuild: it runs the bundle's files as they are"
        )
    found = installed_version(wanted.library)
    check_device(target)
    if target not in manifest.targets:
        return f"the bundle has no engines for {target}"
    if (built := manifest.targets[target].lock.version) != found:
        return f"its engines were built with {wanted.library} {built}, this machine has {found}"
    try:
        golden.selftest(bundle, target)
    except Pi05Error as error:
        return str(error)
    return None


def rebuild(bundle: Path, target: str, out: Path, options: BuildOptions) -> Rebuilt:
    """Builds the engines of `target`, holds them to the golden sample, and writes them to the folder `out`.

    Errors: BundleError for a damaged bundle, or an `out` that holds something else; TargetError on a machine
    without the target's GPU, EngineError if no attempt gave an engine, GateError if the golden sample fails.
    After an error there is no `out`, or the one from before.
    """
    manifest, wanted = read_manifest(bundle), find_target(target)
    check_device(target)
    lock = Lock(wanted.library, installed_version(wanted.library), wanted.compute_capability)
    _check_out(out, bundle)
    verify(bundle, manifest.files, build_files(manifest, target) | shared_files(manifest))
    networks = manifest.targets[target].engines if target in manifest.targets else COMPONENTS
    with staged(out) as folder:
        builds = {n: _build(bundle, manifest, target, n, options, folder / n) for n in networks}
        engines = {
            n: EngineFile(f"{n}/{built.file}", built.recipes, built.attempts, built.layers)
            for n, built in builds.items()
        }
        with Policy.open(bundle, manifest, target, engines, folder) as policy:
            results = golden.judge(policy, bundle, target)
        record = Rebuilt(
            bundle=manifest_sha256(bundle),
            target=target,
            lock=lock,
            engines=engines,
            files={engine.file: hash_file(folder / engine.file) for engine in engines.values()},
            golden=tuple(Score(r.steps, r.cosine, r.threshold) for r in results),
            seconds={n: built.seconds for n, built in builds.items()},
            peak_gb={n: built.peak_gb for n, built in builds.items()},
        )
        (folder / RECORD).write_bytes(msgspec.json.format(msgspec.json.encode(record)) + b"\n")
    return record


def _build(
    bundle: Path, manifest: Manifest, target: str, network: str, options: BuildOptions, out: Path
) -> Built:
    interface = manifest.interface
    return build_engine(
        target,
        {c: _variants(bundle, manifest, target, c) for c in FUSED.get(network, (network,))},
        signatures(manifest.geometry, len(interface.cameras), interface.horizon),
        manifest.prompt_buckets,
        options,
        out,
    )


def _variants(bundle: Path, manifest: Manifest, target: str, component: str) -> list[Path]:
    """The component's ONNX folders that the target's chip can hold, the wanted recipe first."""
    has, variants = find_target(target).recipes, manifest.components[component]
    if not (recipes := [v.recipe for v in variants if v.recipe in has]):
        raise TargetError(
            f"{component}: the bundle has it as {[v.recipe for v in variants]}, {target} runs {sorted(has)}; "
            "export the bundle again with a `fallback` for it"
        )
    return [bundle / onnx_folder(component, recipe) for recipe in recipes]


def _check_out(out: Path, bundle: Path) -> None:
    """A folder that is replaced must be one of ours, and no part of the bundle."""
    place = out.resolve()
    if place in (inside := bundle.resolve(), *inside.parents) or inside in place.parents:
        raise BundleError(f"{out} holds the bundle or lies in it: name a folder beside it")
    if out.exists() and not (out.is_dir() and ((out / RECORD).is_file() or not any(out.iterdir()))):
        raise BundleError(f"{out} is there and holds no rebuilt engines: name another folder, or move it")
