"""What a target asks of a device and of a bundle: one rule a function, which yields what breaks it.

The rules of a library and its engines hold for a device whose chip is right, which judging.py sees to.
"""

from collections.abc import Collection, Iterator

from pi05_runtime.doctor.device import Facts
from pi05_runtime.doctor.verdict import About, Reason
from pi05_runtime.engines.library import ADVICE
from pi05_runtime.manifest import Manifest, build_files, shared_files
from pi05_runtime.targets import TARGETS, find_target

CUDA = (13, 0)
"""The least that a driver must serve: TensorRT for JetPack 7 and TensorRT for RTX are built with CUDA 13."""
MARGIN = 1 << 30
"""Bytes of memory beside the files: activations, prompt buckets, CUDA's context. Chosen, not measured."""
FULL_POWER = "MAXN"


def known(target: str) -> Iterator[Reason]:
    """A target of a release to come is in no list of this one."""
    if target not in TARGETS:
        yield Reason("target", repr(target), f"one of {sorted(TARGETS)}", "update pi05-runtime")


def chip(facts: Facts, target: str) -> Iterator[Reason]:
    """The GPU of the target's compute capability."""
    if target not in TARGETS or (wanted := find_target(target).compute_capability) is None:
        return
    expected = f"compute capability {wanted}"
    if facts.gpu is None:
        found = f"no GPU ({facts.problems.get('gpu', 'no reason given')})"
        yield Reason("chip", found, expected, "run nvidia-smi, and start a container with --runtime nvidia")
    elif facts.gpu.compute_capability != wanted:
        found = f"{facts.gpu.name} of compute capability {facts.gpu.compute_capability}"
        yield Reason("chip", found, expected, "choose a target of this device, or export the bundle for it")


def driver(facts: Facts, target: str) -> Iterator[Reason]:
    """A driver that serves the CUDA of the target's library."""
    gpu = facts.gpu
    if find_target(target).compute_capability is None or gpu is None:
        return
    if tuple(map(int, gpu.cuda.split("."))) < CUDA:
        found = f"{gpu.driver or 'a driver'} for CUDA {gpu.cuda}"
        expected = f"CUDA {CUDA[0]}.{CUDA[1]} or newer"
        yield Reason("driver", found, expected, "install driver 580 or newer; on a Jetson, JetPack 7")


def cuda_python(facts: Facts, target: str) -> Iterator[Reason]:
    """What engines on a GPU need beside their library."""
    wanted = find_target(target)
    if wanted.compute_capability is not None and "cuda-python" not in facts.versions:
        extra = {"tensorrt": "trt", "tensorrt_rtx": "rtx"}.get(wanted.engine, wanted.engine)
        yield _absent(facts, "cuda-python", "cuda-python", f"pip install 'pi05-runtime[{extra}]'")


def library(facts: Facts, target: str) -> Iterator[Reason]:
    """The target's library, in whatever version."""
    name = find_target(target).library
    if find_target(target).needs_library and name not in facts.versions:
        yield _absent(facts, "library", name, ADVICE[name])


def engines(facts: Facts, manifest: Manifest, target: str) -> Iterator[Reason]:
    """Engines that are there, and of the very version that would run them. ONNX Runtime compiles anew."""
    wanted = find_target(target)
    if can_rebuild(manifest, target):
        advice = f"pi05 rebuild BUNDLE --target {target} --out ENGINES"
    else:
        advice = f"add {target} to `targets`, with a recipe that it has, and export again"
    if target not in manifest.targets:
        yield Reason("engines", f"targets {sorted(manifest.targets)} in the bundle", target, advice)
    elif wanted.from_onnx:
        found, built = facts.versions[wanted.library], manifest.targets[target].lock.version
        if found != built:
            yield Reason("engines", f"{wanted.library} {found}", f"{built}, which built them,", advice)


def can_rebuild(manifest: Manifest, target: str) -> bool:
    """Whether the bundle has ONNX of every component in a recipe of the target's chip."""
    wanted = find_target(target)
    return wanted.from_onnx and all(
        any(variant.recipe in wanted.recipes for variant in variants)
        for variants in manifest.components.values()
    )


def memory(facts: Facts, manifest: Manifest, target: str) -> Iterator[Reason]:
    """Room for the files, nearly all of which is weights, on the GPU if it has memory of its own."""
    needed = sum(manifest.files[name].size for name in _files(manifest, target)) + MARGIN
    free, total, gpu = facts.memory_free, facts.memory, facts.gpu
    if find_target(target).compute_capability is not None and gpu is not None and not gpu.shared:
        free, total = gpu.memory_free, gpu.memory
    if free < needed:
        advice = "close other programs" if total >= needed else "choose a device with more memory"
        yield Reason("memory", f"{_gb(free)} free of {_gb(total)}", _gb(needed), advice)


def disk(facts: Facts, manifest: Manifest, target: str, present: Collection[str]) -> Iterator[Reason]:
    """Room for the files that are not `present`."""
    needed = sum(manifest.files[name].size for name in _files(manifest, target) - set(present))
    if facts.disk_free < needed:
        yield Reason("disk", f"{_gb(facts.disk_free)} free in {facts.root}", _gb(needed), "pi05 gc")


def other_library(facts: Facts, manifest: Manifest, target: str) -> Iterator[Reason]:
    """ONNX Runtime in another version than the gates judged, which is worth a self-test."""
    name, judged = find_target(target).library, manifest.targets[target].lock.version
    if find_target(target).needs_library and (found := facts.versions[name]) != judged:
        advice = f"pi05 selftest BUNDLE --target {target}"
        yield Reason("library", f"{name} {found}", f"{judged}, which passed the gates,", advice)


def power(facts: Facts) -> Iterator[Reason]:
    """A Jetson that may not use all of its power is slower than what others measured."""
    if facts.power_mode not in (None, FULL_POWER):
        yield Reason("power", f"mode {facts.power_mode}", FULL_POWER, "sudo nvpmodel -m 0")


def _absent(facts: Facts, about: About, name: str, advice: str) -> Reason:
    return Reason(about, f"no {name} ({facts.problems.get(name, 'no reason given')})", name, advice)


def _files(manifest: Manifest, target: str) -> set[str]:
    """What the device holds of the bundle, to run its engines or to build them."""
    if target in manifest.targets:
        return set(manifest.targets[target].files)
    return build_files(manifest, target) | shared_files(manifest)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
