"""A stand-in for TensorRT as it builds: the library as it was in 10.13 and as it became in 11.

It holds what differs between versions; what the versions share is exercised on TensorRT for RTX.
"""

from collections.abc import Callable
from enum import Enum, IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pi05_runtime.build import BuildOptions, worker
from pi05_runtime.build.contract import Done, Refused
from tests.runtime.build_onnx import SIGNATURES, request, write_component

GEMM = (
    "Name: vision.{layer}.MatMul_myl0_1, LayerType: gemm, Inputs: [ {{ Name: x, Dimensions: [8,256], "
    "Format/Datatype: FP8 }}, {{ Name: w_constantFP8, Dimensions: [256,256], Format/Datatype: FP8 }}], "
    "Outputs: [ {{ Name: y, Dimensions: [8,256], Format/Datatype: BFloat16 }}], "
    "TacticName: sm110_gemm, StreamId: 0, Metadata: [ONNX Layer: vision.{layer}.MatMul]"
)
LINES = "\n".join(["Layers:", *(GEMM.format(layer=layer) for layer in "ab"), "", "Bindings:", "images"])
STREAM = 7
TWO = ({"images": (8, 256)}, {"images": (6, 256)})
"""Shapes of two profiles."""


def resized(profile: int) -> str:
    """The layers of one profile of TWO."""
    return LINES.replace("[8,256]", f"[{TWO[profile]['images'][0]},256]")


class Severity(Enum):
    ERROR = 1
    VERBOSE = 4


class Cache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data + b"+measured"


class Config:
    """builder configuration; `calls` is what it was told."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.cache: Cache | None = None

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        self.calls.append((pool, size))

    def clear_flag(self, flag: str) -> None:
        self.calls.append(("clear", flag))

    def add_optimization_profile(self, profile: Any) -> int:
        return 0

    def create_timing_cache(self, data: bytes) -> Cache | None:
        return None if data == b"damaged" else Cache(data)

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache.data.startswith(b"other GPU"):
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> Cache | None:
        return self.cache


class NewerConfig(Config):
    num_compute_capabilities = 0

    def set_compute_capability(self, chip: str, index: int) -> bool:
        self.calls.append(("chip", chip, index, self.num_compute_capabilities))
        return True


class Network:
    num_layers = 0

    def __init__(self) -> None:
        ports = SIGNATURES["vision"]
        self.ports = [
            [SimpleNamespace(name=p.name, shape=p.shape, dtype=SimpleNamespace(name=dtype)) for p in kind]
            for kind, dtype in ((ports.inputs, "FLOAT"), (ports.outputs, "BF16"))
        ]
        self.num_inputs = self.num_outputs = 0

    def get_input(self, i: int) -> Any:
        return self.ports[0][i]

    def get_output(self, i: int) -> Any:
        return self.ports[1][i]


class Context:
    """An execution context, which knows its profile once it was told."""

    def __init__(self, accepts: Callable[[str], bool]) -> None:
        self.accepts, self.profile, self.shapes = accepts, -1, dict[str, tuple[int, ...]]()

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert stream == STREAM
        self.profile = profile
        return self.accepts("profile")

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return self.accepts("shape")


def library(
    version: str,
    config: Config,
    *,
    refuses: str = "",
    plan: bytes | None = b"plan",
    listing: Callable[[int], str] = lambda profile: LINES,
) -> Any:
    """A stand-in `tensorrt`. refuses: a step of loading the engine that fails. listing: what an inspector
    says with a context of that profile."""
    trt = SimpleNamespace(__name__="tensorrt", __version__=version, flags=[], contexts=[])
    newer = version.startswith("11")

    class Logger:
        def __init__(self) -> None: ...

    class Builder:
        def __init__(self, log: Any) -> None:
            self.log = log

        def create_network(self, flags: int) -> Network:
            trt.flags.append(flags)
            return Network()

        def create_builder_config(self) -> Config:
            return config

        def create_optimization_profile(self) -> Any:
            return SimpleNamespace(set_shape=lambda name, *shapes: None)

        def build_serialized_network(self, network: Network, config: Any) -> bytes | None:
            config.progress_monitor.phase_start("Building", None, 2)
            config.progress_monitor.phase_start("Timing", "Building", 3)
            assert config.progress_monitor.step_complete("Timing", 0)
            config.progress_monitor.phase_finish("Timing")
            self.log.log(Severity.VERBOSE, LINES)
            if plan is None:
                self.log.log(Severity.ERROR, "Error Code 10: no kernel\n (/root/src/a.cpp:7) at 0x7ffc12")
            return plan

    class Parser:
        def __init__(self, network: Network, log: Any) -> None:
            self.network = network

        def parse_from_file(self, path: str) -> bool:
            assert Path(path).is_file()
            self.network.num_inputs = self.network.num_outputs = 1
            self.path, self.num_errors = path, 1
            return refuses != "onnx"

        def get_error(self, index: int) -> str:
            return f"In node 3 (/root/src/parser.cpp:12): weights of {self.path} at 0x7ffc took 12.5 ms"

    class Runtime:
        def __init__(self, log: Any) -> None: ...

        def deserialize_cuda_engine(self, plan: bytes) -> Any:
            return Engine() if refuses != "engine" else None

    class Engine:
        def create_execution_context(self, memory: str) -> Context | None:
            assert memory == "none"
            trt.contexts.append(Context(lambda step: step != refuses))
            return trt.contexts[-1] if refuses != "context" else None

        def create_engine_inspector(self) -> Any:
            return Inspector()

    class Inspector:
        execution_context: Context

        def get_engine_information(self, form: str) -> str | None:
            assert form == "oneline"
            return listing(self.execution_context.profile) if refuses != "inspector" else None

    trt.ILogger = trt.IProgressMonitor = Logger
    trt.Builder, trt.OnnxParser, trt.Runtime = Builder, Parser, Runtime
    trt.NetworkDefinitionCreationFlag = IntEnum("Flag", {"OTHER": 0} if newer else {"STRONGLY_TYPED": 1})
    trt.BuilderFlag = SimpleNamespace() if newer else SimpleNamespace(TF32="TF32", FP8="FP8")
    trt.ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
    trt.MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    trt.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="none")
    trt.LayerInformationFormat = SimpleNamespace(ONELINE="oneline")
    trt.ComputeCapability = SimpleNamespace(CURRENT="this GPU")
    return trt


def attempt(tmp_path: Path, trt: Any, **changes: Any) -> Done | Refused:
    """One attempt with `trt`, for this machine's GPU, which is pretended. changes: to its request.

    Below `tmp_path`: `onnx` with an fp8 vision component, `out` for the engine, `timing.cache`.
    """
    if not (folder := tmp_path / "onnx").exists():
        write_component(folder, "vision", "fp8")
    (tmp_path / "out").mkdir(exist_ok=True)
    options = BuildOptions(1, 1.5, str(tmp_path / "timing.cache"))
    wanted = {"library": "tensorrt", "optimization_level": 2, "options": options}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "load_library", lambda name: trt)
        patch.setattr(worker, "CudaDevice", lambda: SimpleNamespace(create_stream=lambda: STREAM))
        return worker.answer(request(folder, tmp_path / "out", **wanted | changes), [])
