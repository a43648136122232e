"""torch-tensorrt's road, as far as it goes without the library: all but the compilation is real.

The stand-in takes what torch_tensorrt 2.9 to 2.14 take, no more, and gets the real exported program.
"""

import sys
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch.export import ExportedProgram

from export.component import build_component, component_signatures
from export.engine import torch_tensorrt as road
from export.engine.torch_tensorrt import build_torch_tensorrt
from export.params import load_params
from pi05_runtime.errors import EngineError, ParamsError, TargetError
from tests.pipeline import change_params, make_workspace, run_stage

ENGINE = b"an engine"
DTYPES = {"float32": torch.float32, "activation": torch.bfloat16}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which the checkpoint stage ran: all that this road reads."""
    folder = make_workspace(tmp_path_factory.mktemp("torch_tensorrt") / "workspace")
    change_params(folder, components__vision__recipe="bf16")
    run_stage(folder, "export.checkpoint.__main__")
    return folder


class Compiler:
    """What convert_exported_program_to_serialized_trt_engine got, and whether it should fail."""

    def __init__(self) -> None:
        self.program: ExportedProgram | None = None
        self.inputs: list[torch.Tensor] = []
        self.settings: dict[str, Any] = {}
        self.error: Exception | None = None

    def __call__(
        self, exported_program: ExportedProgram, *, arg_inputs: list[torch.Tensor], **settings: Any
    ) -> bytes:
        self.program, self.inputs, self.settings = exported_program, arg_inputs, settings
        Path(settings["timing_cache_path"]).write_bytes(b"as the library does")
        if self.error is not None:
            raise self.error
        return ENGINE


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    """A stand-in for torch_tensorrt, on a machine whose GPU is the CPU."""
    compiler = Compiler()
    module = ModuleType("torch_tensorrt")
    module.__version__ = "2.13.0"  # pyright: ignore[reportAttributeAccessIssue]
    module.dynamo = SimpleNamespace(  # pyright: ignore[reportAttributeAccessIssue]
        convert_exported_program_to_serialized_trt_engine=compiler
    )
    monkeypatch.setitem(sys.modules, "torch_tensorrt", module)
    monkeypatch.setattr(road, "find_gpu", lambda component: torch.device("cpu"))
    return compiler


def build(workspace: Path, out: Path, component: str = "vision") -> Path:
    with chdir(workspace):
        return build_torch_tensorrt(component, out, workspace_gib=1.5, optimization_level=2)


def test_the_engine_is_what_the_library_gave(checkpoint: Path, compiler: Compiler, tmp_path: Path):
    path = build(checkpoint, tmp_path)
    assert path == tmp_path / "vision.engine"
    assert path.read_bytes() == ENGINE
    assert list(tmp_path.iterdir()) == [path]


def test_settings(checkpoint: Path, compiler: Compiler, tmp_path: Path):
    build(checkpoint, tmp_path)
    scratch = Path(compiler.settings.pop("timing_cache_path")).parent
    assert not scratch.exists()
    assert compiler.settings == {
        "use_explicit_typing": True,
        "disable_tf32": True,
        "workspace_size": 3 << 29,
        "optimization_level": 2,
    }


def test_the_program_is_the_component(checkpoint: Path, compiler: Compiler, tmp_path: Path):
    """Same bits as the module, on images that were not in the trace."""
    build(checkpoint, tmp_path)
    with chdir(checkpoint):
        module = build_component("vision", load_params())
    images = torch.rand(compiler.inputs[0].shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert compiler.program is not None
    found = compiler.program.module()(images)
    assert torch.equal(found, module(images))
    assert found.abs().max() > 0


def test_ports_are_the_signature(checkpoint: Path, compiler: Compiler, tmp_path: Path):
    """torch-tensorrt names an engine's inputs after the program's."""
    build(checkpoint, tmp_path)
    with chdir(checkpoint):
        ports = component_signatures()["vision"]
    program = compiler.program
    assert program is not None
    values = {n.name: n.meta["val"] for n in program.graph.nodes if "val" in n.meta}
    signature = program.graph_signature
    for names, expected in ((signature.user_inputs, ports.inputs), (signature.user_outputs, ports.outputs)):
        found = [(tuple(values[n].shape), values[n].dtype) for n in names]
        assert found == [(p.shape, DTYPES[p.dtype]) for p in expected]
    assert list(signature.user_inputs) == [p.name for p in ports.inputs]


def test_the_program_is_strongly_typed_in_bf16_and_fp32(checkpoint: Path, compiler: Compiler, tmp_path: Path):
    """No float64 or int64, which TensorRT would need to be told to truncate; no symbolic size."""
    build(checkpoint, tmp_path)
    assert compiler.program is not None
    values = [v for n in compiler.program.graph.nodes if isinstance(v := n.meta.get("val"), torch.Tensor)]
    assert {v.dtype for v in values} == {torch.float32, torch.bfloat16}
    assert not compiler.program.range_constraints
    assert all(isinstance(size, int) for v in values for size in v.shape)


@pytest.mark.parametrize("error", [RuntimeError("no converter"), UnboundLocalError("interpreter_result")])
def test_a_failed_compilation_leaves_nothing(
    checkpoint: Path, compiler: Compiler, tmp_path: Path, error: Exception
):
    """torch-tensorrt 2.9 logs the cause and then trips over its own variable."""
    compiler.error = error
    with pytest.raises(
        EngineError, match=r"torch-tensorrt 2\.13\.0 could not compile vision: .*ONNX instead"
    ):
        build(checkpoint, tmp_path)
    assert list(tmp_path.iterdir()) == []


def fail(error: Exception) -> Callable[[str], ModuleType]:
    def load(name: str) -> ModuleType:
        raise error

    return load


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'torch_tensorrt'"),
        Exception("import error when try to import _TensorRTProxyModule, got error ... libnvinfer.so.10"),
        OSError("libcudart.so.13: cannot open shared object file"),
    ],
)
def test_absence_is_named(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    """The second is what torch-tensorrt really raises beside no TensorRT."""
    monkeypatch.setattr(road, "import_module", fail(error))
    with pytest.raises(TargetError, match="cannot be imported") as caught:
        build(checkpoint, tmp_path)
    for words in (str(error), "made for that TensorRT", "remove it from build.torch_tensorrt"):
        assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_no_gpu_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TargetError, match=r"sees no GPU.*build for this machine's CUDA"):
        road.find_gpu("vision")


@pytest.mark.parametrize("component", ["prefill", "denoise"])
def test_only_vision(checkpoint: Path, compiler: Compiler, tmp_path: Path, component: str):
    with pytest.raises(ParamsError, match=f"{component} found, vision expected.*remove it"):
        build(checkpoint, tmp_path, component)
    assert compiler.program is None


@pytest.mark.parametrize("recipe", ["fp8", "int8", "int4", "nvfp4"])
def test_only_bf16(checkpoint: Path, compiler: Compiler, tmp_path: Path, recipe: str):
    with chdir(checkpoint):
        params = load_params()
    changed = SimpleNamespace(components={"vision": SimpleNamespace(recipe=recipe)})
    road.check_choice("vision", params)
    with pytest.raises(ParamsError, match=f"recipe {recipe} of vision found, bf16 expected"):
        road.check_choice("vision", changed)  # pyright: ignore[reportArgumentType]
