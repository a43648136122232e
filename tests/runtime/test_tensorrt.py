"""TensorRT engines as networks: the order of calls and every refusal, against a stand-in for the library.

What a stand-in cannot show, that the names exist, is checked on the library that installs here.
"""

import ast
import inspect
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pi05_runtime.engines import open_engine, tensorrt
from pi05_runtime.engines.graph_engine import GraphEngine
from pi05_runtime.engines.tensorrt import Log, TensorRTProgram
from pi05_runtime.errors import EngineError, TargetError
from pi05_runtime.geometry import fixed_shape
from tests.runtime.fake_tensorrt import Library, describe, write_engine
from tests.runtime.host_device import SIGNATURES, HostDevice, at, example, schedule

TOKENS, BUCKETS = 8, [5, 7]
NETWORKS = ("vision", "prefill", "denoise")
STREAM = 77


@pytest.fixture
def device() -> HostDevice:
    return HostDevice()


@pytest.fixture(params=["tensorrt", "tensorrt_rtx"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Library:
    fake = Library(rtx=request.param == "tensorrt_rtx")
    monkeypatch.setitem(sys.modules, request.param, fake)  # type: ignore[arg-type]
    return fake


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return {
        name: write_engine(tmp_path / name, describe(SIGNATURES[name], BUCKETS, TOKENS, memory))
        for name, memory in zip(NETWORKS, (512, 4096, 1024), strict=True)
    }


def load(library: Library, files: dict[str, Path], device: HostDevice) -> TensorRTProgram:
    return TensorRTProgram("tensorrt_rtx" if library.rtx else "tensorrt", files, SIGNATURES, device)


def shapes(network: str, prompt: int) -> dict[str, tuple[int, ...]]:
    ports = (*SIGNATURES[network].inputs, *SIGNATURES[network].outputs)
    return {port.name: fixed_shape(port, prompt, TOKENS) for port in ports}


def test_shapes_are_set_once_and_addresses_at_each_launch(
    library: Library, files: dict[str, Path], device: HostDevice
) -> None:
    program = load(library, files, device)
    assert set(program.networks) == set(NETWORKS)
    library.calls.clear()
    launch = program.bind("prefill", shapes("prefill", 7), STREAM)
    (scratch,) = device.memory
    names = [call[0] for call in library.calls]
    after = ["capturable"] if library.rtx else []
    assert names == ["create_context", "profile", *["shape"] * 3, "infer", "memory", *after]
    assert ("profile", 1, STREAM) in library.calls
    assert ("shape", "prompt_embeddings", (7, 4)) in library.calls
    # The largest of the three engines' needs, shared.
    assert ("memory", scratch, 4096) in library.calls
    for offset in (100, 200):
        library.calls.clear()
        launch({name: offset + i for i, name in enumerate(shapes("prefill", 7))}, STREAM)
        addresses = [("address", name, offset + i) for i, name in enumerate(shapes("prefill", 7))]
        assert library.calls == [*addresses, ("execute", STREAM)]
    program.close()
    assert device.leaks == 0


def test_context_is_one_that_can_be_captured(
    library: Library, files: dict[str, Path], device: HostDevice
) -> None:
    load(library, files, device).bind("vision", shapes("vision", 5), STREAM)
    how = next(call[1] for call in library.calls if call[0] == "create_context")
    found = [part.name for part in how] if library.rtx else how.name
    assert found == (["USER_MANAGED", "EAGER", "DISABLED"] if library.rtx else "USER_MANAGED")


def test_single_output_may_have_another_name(
    library: Library, files: dict[str, Path], device: HostDevice
) -> None:
    description = describe(SIGNATURES["vision"], BUCKETS, TOKENS)
    description["tensors"]["output0"] = description["tensors"].pop("image_tokens")
    write_engine(files["vision"], description)
    launch = load(library, files, device).bind("vision", shapes("vision", 5), STREAM)
    launch({"images": 1, "image_tokens": 2}, STREAM)
    assert library.calls[-3:] == [("address", "images", 1), ("address", "output0", 2), ("execute", STREAM)]


@pytest.mark.parametrize(
    ("network", "tensor", "change"),
    [
        ("vision", "images", {"dtype": "HALF"}),
        ("vision", "image_tokens", {"shape": [9, 4]}),
        ("denoise", "x", {"mode": "OUTPUT"}),
        ("prefill", "prefix_length", {"place": "HOST"}),
        ("prefill", "keys", {"shape": [2, 13, 2]}),
    ],
)
def test_engine_of_another_signature_is_refused(
    library: Library,
    files: dict[str, Path],
    device: HostDevice,
    network: str,
    tensor: str,
    change: dict[str, Any],
) -> None:
    description = describe(SIGNATURES[network], BUCKETS, TOKENS)
    description["tensors"][tensor] |= change
    write_engine(files[network], description)
    with pytest.raises(
        EngineError, match=rf"{network}: tensors .*{tensor}.* found, .* expected; run `pi05 re"
    ):
        load(library, files, device)
    assert device.leaks == 0


def test_renamed_output_of_two_is_refused(
    library: Library, files: dict[str, Path], device: HostDevice
) -> None:
    description = describe(SIGNATURES["prefill"], BUCKETS, TOKENS)
    description["tensors"]["output0"] = description["tensors"].pop("keys")
    write_engine(files["prefill"], description)
    with pytest.raises(EngineError, match=r"prefill: tensors .*'output0'.* found, .*'keys'.* expected"):
        load(library, files, device)


def test_engine_that_does_not_load(
    library: Library, files: dict[str, Path], device: HostDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt, "compute_capability", lambda: "11.0")
    library.refuse = {"deserialize"}
    message = r"vision: tensorrt\w* 10\.99\.1\.2 on a GPU of compute capability 11\.0 cannot load it "
    with pytest.raises(EngineError, match=message + r"\(deserialize failed on purpose\).*`pi05 rebuild`"):
        load(library, files, device)
    assert device.leaks == 0


def test_empty_file(library: Library, files: dict[str, Path], device: HostDevice) -> None:
    files["denoise"].write_bytes(b"")
    with pytest.raises(EngineError, match=r"denoise: an empty file found.*`pi05 rebuild`"):
        load(library, files, device)


def test_library_without_a_gpu(library: Library, files: dict[str, Path], device: HostDevice) -> None:
    library.refuse = {"Runtime"}
    with pytest.raises(EngineError, match=r"cannot make a runtime \(pybind11.*log is empty\)"):
        load(library, files, device)


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_missing_library_is_named(
    name: Any, files: dict[str, Path], device: HostDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    advice = {"tensorrt": "JetPack", "tensorrt_rtx": r"pip install 'pi05-runtime\[rtx\]'"}[name]
    with pytest.raises(TargetError, match=rf"needs {name}, which does not import here.*{advice}"):
        TensorRTProgram(name, files, SIGNATURES, device)


@pytest.mark.parametrize("call", ["create_context", "profile", "shape", "infer", "capturable"])
def test_refused_call_of_bind(
    library: Library, files: dict[str, Path], device: HostDevice, call: str
) -> None:
    program = load(library, files, device)
    library.refuse = {call}
    if call == "capturable" and not library.rtx:
        program.bind("prefill", shapes("prefill", 5), STREAM)
        return
    with pytest.raises(EngineError, match=rf"prefill.*{call} failed on purpose"):
        program.bind("prefill", shapes("prefill", 5), STREAM)


@pytest.mark.parametrize("call", ["address", "execute"])
def test_refused_launch(library: Library, files: dict[str, Path], device: HostDevice, call: str) -> None:
    launch = load(library, files, device).bind("vision", shapes("vision", 5), STREAM)
    library.refuse = {call}
    with pytest.raises(EngineError, match=rf"vision: TensorRT refused .*\({call} failed on purpose\)"):
        launch({"images": 1, "image_tokens": 2}, STREAM)


def test_shapes_without_a_profile(library: Library, files: dict[str, Path], device: HostDevice) -> None:
    with pytest.raises(EngineError) as caught:
        load(library, files, device).bind("denoise", shapes("denoise", 6), STREAM)
    message = str(caught.value)
    assert "'keys': (2, 14, 2)" in message and "(2, 13, 2)" in message and "(2, 15, 2)" in message
    assert "prompt bucket" in message


def test_one_profile_with_a_range(library: Library, files: dict[str, Path], device: HostDevice) -> None:
    description = describe(SIGNATURES["prefill"], [6], TOKENS)
    description["profiles"] = [{"prompt_embeddings": [[1, 4], [6, 4], [9, 4]]}]
    write_engine(files["prefill"], description)
    program = load(library, files, device)
    program.bind("prefill", shapes("prefill", 6), STREAM)
    with pytest.raises(EngineError, match=r"\(10, 4\)"):
        program.bind("prefill", shapes("prefill", 10), STREAM)


def test_output_of_another_size(library: Library, files: dict[str, Path], device: HostDevice) -> None:
    description = describe(SIGNATURES["prefill"], BUCKETS, TOKENS)
    description["tensors"]["values"]["inferred"][0] = (2, 14, 2)
    write_engine(files["prefill"], description)
    with pytest.raises(EngineError, match=r"values of shape \[2, 14, 2\] found, \[2, 13, 2\] expected"):
        load(library, files, device).bind("prefill", shapes("prefill", 5), STREAM)


def test_network_that_is_not_there(library: Library, files: dict[str, Path], device: HostDevice) -> None:
    with pytest.raises(EngineError, match=r"prefix: networks \['denoise', 'prefill', 'vision'\] found"):
        load(library, files, device).bind("prefix", shapes("prefix", 5), STREAM)


def test_graph_engine_over_the_program(library: Library, files: dict[str, Path], device: HostDevice) -> None:
    # The stand-in computes nothing, so the actions are what was in memory.
    device.filler = 0
    engine = GraphEngine(device, load(library, files, device), SIGNATURES)
    inputs, noise = example(5)
    assert not engine.decide(inputs, noise, schedule(2)).actions.any()
    executed = [call for call in library.calls if call[0] == "execute"]
    # Vision, prefill and two steps, each once as warm-up and once captured.
    assert len(executed) == 2 * 4
    calls = [call[1:] for call in library.calls if call[0] == "address"]
    addresses = {name: [found for port, found in calls if port == name] for name, _ in calls}
    rows = addresses["modulation"]
    assert rows[1] - rows[0] == 256  # the next row of the table, padded
    np.testing.assert_array_equal(at(addresses["x"][0], noise.nbytes).view(np.float32), noise.reshape(-1))
    assert addresses["x"][1] == addresses["x_next"][0]
    engine.close()
    assert device.leaks == 0


@pytest.mark.parametrize("fault", ["library", "engine"])
def test_open_engine_gives_back_the_device(
    library: Library,
    files: dict[str, Path],
    device: HostDevice,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    from pi05_runtime.engines import driver

    monkeypatch.setattr(driver, "CudaDevice", lambda: device)
    target = "sm120-rtx" if library.rtx else "sm110-trt"
    if fault == "library":
        files["vision"].write_bytes(b"")
        with pytest.raises(EngineError):
            open_engine(target, files, SIGNATURES)
    else:
        engine = open_engine(target, files, SIGNATURES)
        assert not device.closed
        engine.close()
    assert device.closed and device.leaks == 0


def test_gpu_target_without_a_gpu(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(TargetError, match=r"need cuda-python.*pip install 'pi05-runtime\[plan\]', or "):
        open_engine("sm110-trt", files, SIGNATURES)


# Where each variable of the source comes from in the library.
KINDS = {
    "trt": "",
    "self._trt": "",
    "self._runtime": "Runtime",
    "engine": "ICudaEngine",
    "e": "ICudaEngine",
    "context": "IExecutionContext",
    "self._context": "IExecutionContext",
    "config": "IRuntimeConfig",
}


def used_names() -> set[str]:
    """Dotted names, from the library's module down, that tensorrt.py uses."""
    used: set[str] = set()
    for node in ast.walk(ast.parse(inspect.getsource(tensorrt))):
        if isinstance(node, ast.Attribute):
            owner, _, rest = ast.unparse(node).rpartition(".")
            for variable, kind in KINDS.items():
                if owner == variable or owner.startswith(f"{variable}."):
                    tail = owner[len(variable) + 1 :]
                    used.add(".".join(part for part in (kind, tail, rest) if part))
    return used - {"__version__"}


def test_every_name_exists_in_the_library_that_installs_here() -> None:
    rtx = pytest.importorskip("tensorrt_rtx")
    used = used_names()
    assert {"Runtime.deserialize_cuda_engine", "IExecutionContext.execute_async_v3"} <= used and len(
        used
    ) > 20
    for name in sorted(used):
        found = rtx
        for part in name.split("."):
            assert hasattr(found, part), name
            found = getattr(found, part)
    for enum, members in (
        ("DataType", set(tensorrt.DTYPES.values())),
        ("TensorIOMode", {"INPUT", "OUTPUT"}),
        ("TensorLocation", {"DEVICE"}),
    ):
        assert members <= set(getattr(rtx, enum).__members__)


def test_log_of_the_real_library_reaches_the_error(tmp_path: Path, device: HostDevice) -> None:
    pytest.importorskip("tensorrt_rtx")
    (tmp_path / "vision").write_bytes(b"no engine" * 20)
    with pytest.raises(EngineError) as caught:
        TensorRTProgram("tensorrt_rtx", {"vision": tmp_path / "vision"}, SIGNATURES, device)
    message = str(caught.value)
    assert "cannot load it" in message and "erializ" in message and "`pi05 rebuild`" in message


def test_log_keeps_the_last_messages_once(library: Library) -> None:
    log = Log(library)
    severity = library.ILogger.Severity
    for number in range(9):
        log.handler.log(severity.WARNING, f"message {number} ")
    log.handler.log(severity.VERBOSE, "chatter")
    assert log.take() == "; ".join(f"message {number}" for number in range(4, 9))
    assert log.take() == "its log is empty"


def test_the_engine_knows_nothing_of_tensorrt() -> None:
    modules = (sys.modules[f"pi05_runtime.engines.{name}"] for name in ("graph", "graph_engine", "memory"))
    source = "".join(map(inspect.getsource, modules))
    assert "tensorrt" not in source.lower()
