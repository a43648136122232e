"""The builder's configuration: one for TensorRT 10.13 to 11 and TensorRT for RTX.

What is absent is on purpose. No precision flags and no calibrators: types come from the ONNX alone. No
refitting, stripped plans or version compatibility: an engine belongs to one version and carries its weights.
"""

import sys
from pathlib import Path
from typing import Any

from pi05_runtime.build.contract import Request
from pi05_runtime.errors import EngineError
from pi05_runtime.staging import write_file


def configure(trt: Any, builder: Any, request: Request) -> Any:
    """Errors: EngineError for what the library refuses."""
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.builder_optimization_level = request.optimization_level
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(request.options.workspace_gib * 2**30))
    if hasattr(trt.BuilderFlag, "TF32"):
        # On by default, it would round what is kept in fp32: patch embedding and action projections.
        config.clear_flag(trt.BuilderFlag.TF32)
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        # TensorRT for RTX may otherwise allocate inside an enqueue, which no CUDA graph can hold.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if hasattr(config, "set_compute_capability"):
        _set_chip(trt, config, request)
    for shapes in request.profiles:
        profile = builder.create_optimization_profile()
        for name, shape in shapes.items():
            profile.set_shape(name, shape, shape, shape)
        if config.add_optimization_profile(profile) < 0:
            raise EngineError(f"{trt.__name__} {trt.__version__} refuses the shapes {shapes}; export again")
    return config


def _set_chip(trt: Any, config: Any, request: Request) -> None:
    """TensorRT builds for the GPU at hand, which the target's lock was checked on; RTX for the one named."""
    chip = "CURRENT" if request.library == "tensorrt" else f"SM{request.compute_capability.replace('.', '')}"
    member = getattr(trt.ComputeCapability, chip, None)
    config.num_compute_capabilities = 1
    if member is None or not config.set_compute_capability(member, 0):
        known = ", ".join(name for name in dir(trt.ComputeCapability) if name.startswith("SM"))
        raise EngineError(
            f"{trt.__name__} {trt.__version__} builds for {known}, {chip} expected; install the version of "
            "the target's lock"
        )


def open_timing_cache(config: Any, request: Request) -> Any:
    """Gives `tensorrt` what earlier builds measured. A cache that is damaged, or of another version or GPU,
    is replaced.

    Returns the library's cache, which must outlive the build; None where there is none.
    """
    if (path := _timing_cache(request)) is None:
        return None
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        print(f"{path} is damaged, or of another version or GPU: measuring anew", file=sys.stderr)
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def save_timing_cache(config: Any, request: Request) -> None:
    """Keeps what this build measured. A failure is said, and no more: the engine is finished."""
    if (path := _timing_cache(request)) is None:
        return
    try:
        write_file(path, bytes(config.get_timing_cache().serialize()))
    except Exception as error:
        print(f"{path} is not kept ({error}): the next build measures anew", file=sys.stderr)


def _timing_cache(request: Request) -> Path | None:
    """None for TensorRT for RTX too, whose timing cache does nothing and is deprecated."""
    if request.library != "tensorrt" or request.options.timing_cache is None:
        return None
    return Path(request.options.timing_cache)
