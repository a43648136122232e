"""One builder for TensorRT 10.13 to 11: stand-ins for the library as it was and as it became.

They hold what differs between versions; what the versions share is exercised on TensorRT for RTX.
"""

import os
from collections.abc import Callable
from enum import Enum, IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from pi05_runtime.build import BuildOptions, worker
from pi05_runtime.build.contract import Done, Part, Refused, Request
from pi05_runtime.errors import EngineError
from pi05_runtime.table import Table
from tests.runtime.build_onnx import SIGNATURES, write_component

GEMM = (
    "Name: vision.{layer}.MatMul_myl0_1, LayerType: gemm, Inputs: [ {{ Name: x, Dimensions: [8,256], "
    "Format/Datatype: FP8 }}, {{ Name: w_constantFP8, Dimensions: [256,256], Format/Datatype: FP8 }}], "
    "Outputs: [ {{ Name: y, Dimensions: [8,256], Format/Datatype: BFloat16 }}], "
    "TacticName: sm110_gemm, StreamId: 0, Metadata: [ONNX Layer: vision.{layer}.MatMul]"
)
LINES = "\n".join(["Layers:", *(GEMM.format(layer=layer) for layer in "ab"), "", "Bindings:", "images"])


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

    def create_timing_cache(self, data: bytes) -> Cache:
        return Cache(data)

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


def library(version: str, config: Config, *, loads: bool = True, plan: bytes | None = b"plan") -> Any:
    """A stand-in `tensorrt`. loads: whether this machine's GPU takes the engine."""
    trt = SimpleNamespace(__name__="tensorrt", __version__=version, flags=[])
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
            return True

    class Runtime:
        def __init__(self, log: Any) -> None: ...

        def deserialize_cuda_engine(self, plan: bytes) -> Any:
            inspector = SimpleNamespace(get_engine_information=lambda form: LINES)
            return SimpleNamespace(create_engine_inspector=lambda: inspector) if loads else None

    trt.ILogger = trt.IProgressMonitor = Logger
    trt.Builder, trt.OnnxParser, trt.Runtime = Builder, Parser, Runtime
    trt.NetworkDefinitionCreationFlag = IntEnum("Flag", {"OTHER": 0} if newer else {"STRONGLY_TYPED": 1})
    trt.BuilderFlag = SimpleNamespace() if newer else SimpleNamespace(TF32="TF32", FP8="FP8")
    trt.ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
    trt.MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    trt.LayerInformationFormat = SimpleNamespace(ONELINE="oneline")
    trt.ComputeCapability = SimpleNamespace(CURRENT="this GPU")
    return trt


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Done | Refused]:
    folder = write_component(tmp_path / "onnx", "vision", "fp8")
    table = msgspec.json.decode((folder / "table.json").read_bytes(), type=Table)
    (tmp_path / "out").mkdir()

    def build(trt: Any) -> Done | Refused:
        monkeypatch.setattr(worker, "load_library", lambda name: trt)
        request = Request(
            library="tensorrt",
            compute_capability="11.0",
            name="vision",
            parts=(Part("vision", str(folder / "bf16.onnx"), table),),
            signature=SIGNATURES["vision"],
            profiles=(),
            optimization_level=2,
            options=BuildOptions(1, 1.5, str(tmp_path / "timing.cache")),
            out=str(tmp_path / "out"),
            parent=os.getpid(),
        )
        return worker.build(request, [])

    return build


def test_older_library_is_told_what_newer_ones_assume(build: Callable[[Any], Done | Refused]) -> None:
    trt = library("10.13.3.9", config := Config())
    answer = build(trt)
    assert isinstance(answer, Done)
    assert trt.flags == [1 << 1]
    assert config.calls == [("workspace", int(1.5 * 2**30)), ("clear", "TF32")]
    assert vars(config)["builder_optimization_level"] == 2
    assert vars(config)["profiling_verbosity"] == "detailed"


def test_newer_library_lacks_flags_and_takes_a_chip(build: Callable[[Any], Done | Refused]) -> None:
    trt = library("11.4.1.1", config := NewerConfig())
    assert isinstance(build(trt), Done)
    assert trt.flags == [0]
    assert config.calls == [("workspace", int(1.5 * 2**30)), ("chip", "this GPU", 0, 1)]


@pytest.mark.parametrize(("loads", "source"), [(True, "inspector"), (False, "builder log")])
def test_evidence_is_the_inspectors_where_the_engine_loads(
    loads: bool, source: str, build: Callable[[Any], Done | Refused], tmp_path: Path
) -> None:
    answer = build(library("10.13.3.9", Config(), loads=loads))
    assert isinstance(answer, Done)
    assert (answer.evidence.source, answer.evidence.precisions) == (source, {"fp8": 2})
    assert (tmp_path / "out" / "vision.engine").read_bytes() == b"plan"


def test_timing_cache_grows(build: Callable[[Any], Done | Refused], tmp_path: Path) -> None:
    cache = tmp_path / "timing.cache"
    build(library("10.13.3.9", Config()))
    assert cache.read_bytes() == b"+measured"
    build(library("10.13.3.9", Config()))
    assert cache.read_bytes() == b"+measured+measured"
    assert {path.name for path in tmp_path.iterdir()} == {"onnx", "out", "timing.cache"}


def test_timing_cache_of_another_gpu_is_replaced(
    build: Callable[[Any], Done | Refused], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "timing.cache").write_bytes(b"other GPU")
    build(library("10.13.3.9", Config()))
    assert (tmp_path / "timing.cache").read_bytes() == b"+measured"
    assert "of another version or GPU: measuring anew" in capsys.readouterr().err


def test_refusal_is_one_line_that_is_the_same_anywhere(
    build: Callable[[Any], Done | Refused], tmp_path: Path
) -> None:
    answer = build(library("10.13.3.9", Config(), plan=None))
    assert answer == Refused("refused: Error Code 10: no kernel (a.cpp:7) at 0x...")
    assert not (tmp_path / "timing.cache").exists() and not list((tmp_path / "out").iterdir())


def test_chip_that_the_library_does_not_build_for(build: Callable[[Any], Done | Refused]) -> None:
    trt = library("11.4.1.1", NewerConfig())
    trt.ComputeCapability = SimpleNamespace(SM120="12.0")
    with pytest.raises(EngineError, match="builds for SM120, CURRENT expected"):
        build(trt)
