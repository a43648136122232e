"""TensorRT's targets: the runtime's own builder, which a device can call too, on the pipeline's ONNX.

On the device that it is for (sm110-trt) or ahead of time on any machine (TensorRT for RTX). How a build
climbs down its ladder, and how an engine's layers are held to the plan, is in pi05_runtime.build.
"""

from pathlib import Path

from export.artifacts import LOCKS, quantized_folder
from export.component import component_signatures
from export.engine import EngineRecord
from export.engine.torch_tensorrt import build_torch_tensorrt
from export.params import Params
from pi05_runtime.build import LEVELS, BuildOptions, build_engine
from pi05_runtime.geometry import FUSED
from pi05_runtime.lock import Lock, check_device
from pi05_runtime.targets import find_target
from pi05_runtime.verify import hash_file


def build(target: str, network: str, lock: Lock, params: Params, out: Path) -> EngineRecord:
    """Errors: TargetError on a machine that cannot build for `target`, EngineError if every attempt
    failed, ParamsError for torch-tensorrt where it is no good."""
    if find_target(target).engine == "tensorrt":
        check_device(target)
        if network in params.build.torch_tensorrt:
            path = build_torch_tensorrt(network, out, params.build.workspace_gib, LEVELS[0])
            sha256 = hash_file(path).sha256
            return EngineRecord(path.name, sha256, "engine", {network: "bf16"}, (), lock)
    components = FUSED.get(network, (network,))
    cache = LOCKS / f"{target}.timing"
    built = build_engine(
        target,
        {c: [quantized_folder(c, recipe) for recipe in params.recipes(target, c)] for c in components},
        component_signatures(),
        params.export.prompt_buckets,
        BuildOptions(params.build.minutes, params.build.workspace_gib, str(cache)),
        out,
    )
    print(f"engine {target} {network}: {built.seconds:.0f} s, peak {built.peak_gb:.1f} GB, {built.layers}")
    sha256 = hash_file(out / built.file).sha256
    return EngineRecord(built.file, sha256, "engine", built.recipes, (), lock, built.attempts, built.layers)
