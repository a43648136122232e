"""The driver's wrapper where there is no GPU: what it says, and that the bindings have what it calls."""

import enum
import inspect
import re
import sys
from importlib import import_module
from typing import Any

import pytest

from pi05_runtime.engines import driver
from pi05_runtime.engines.driver import CudaDevice, compute_capability
from pi05_runtime.errors import EngineError, TargetError
from pi05_runtime.plan import Tiled


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_NOT_KNOWN = 12345


class Bindings:
    """A stand-in for cuda.bindings.driver: every call succeeds with `results`, or gives its `errors`."""

    CUresult = CUresult

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.errors: dict[str, CUresult] = {}
        self.results: dict[str, tuple[Any, ...]] = {
            "cuDeviceGetCount": (1,),
            "cuDeviceGet": (0,),
            "cuDevicePrimaryCtxRetain": (55,),
            "cuEventCreate": (77,),
            "cuMemAlloc": (4096,),
            "cuGraphInstantiate": (66,),
        }
        real = import_module("cuda.bindings.driver")
        self.CUdevice_attribute, self.CUevent_flags = real.CUdevice_attribute, real.CUevent_flags
        self.CUstreamCaptureMode, self.CUstream_flags = real.CUstreamCaptureMode, real.CUstream_flags
        self.CUlaunchAttribute, self.CUlaunchAttributeID = real.CUlaunchAttribute, real.CUlaunchAttributeID
        self.CUlaunchConfig = real.CUlaunchConfig

    def cuGetErrorName(self, error: CUresult) -> tuple[CUresult, bytes | None]:
        return CUresult.CUDA_SUCCESS, None if error == CUresult.CUDA_ERROR_NOT_KNOWN else error.name.encode()

    def cuGetErrorString(self, error: CUresult) -> tuple[CUresult, bytes | None]:
        return CUresult.CUDA_SUCCESS, None if error == CUresult.CUDA_ERROR_NOT_KNOWN else b"what CUDA says"

    def cuDeviceGetAttribute(self, attribute: Any, device: int) -> tuple[CUresult, int]:
        return CUresult.CUDA_SUCCESS, 11 if attribute.name.endswith("MAJOR") else 0

    def __getattr__(self, name: str) -> Any:
        def function(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            return self.errors.get(name, CUresult.CUDA_SUCCESS), *self.results.get(name, ())

        return function


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Bindings:
    bindings = Bindings()
    monkeypatch.setattr(driver, "import_module", lambda name: bindings)
    return bindings


def test_compute_capability(cuda: Bindings) -> None:
    assert compute_capability() == "11.0"


@pytest.mark.parametrize("lacking", ["driver", "device", "count"])
def test_machine_without_a_gpu(cuda: Bindings, lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if lacking == "driver":
        missing = RuntimeError("libcuda is nowhere")
        monkeypatch.setattr(cuda, "cuInit", lambda flags: (_ for _ in ()).throw(missing), raising=False)
    elif lacking == "device":
        cuda.errors["cuInit"] = CUresult.CUDA_ERROR_NO_DEVICE
    else:
        cuda.results["cuDeviceGetCount"] = (0,)
    found = {"driver": "libcuda is nowhere", "device": "CUDA_ERROR_NO_DEVICE", "count": "without a GPU"}
    assert compute_capability() is None
    with pytest.raises(TargetError, match=rf"needs an NVIDIA GPU.*{found[lacking]}.*nvidia-smi.*cpu-ort"):
        CudaDevice()


def test_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    for function in (compute_capability, CudaDevice):
        with pytest.raises(TargetError, match=r"need cuda-python.*pip install 'pi05-runtime\[plan\]'"):
            function()


def test_error_names_the_call_and_cuda_s_words(cuda: Bindings) -> None:
    device = CudaDevice()
    cuda.errors["cuMemAlloc"] = CUresult.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(
        EngineError, match=r"^cuMemAlloc: CUDA error CUDA_ERROR_OUT_OF_MEMORY \(what CUDA says\)"
    ):
        device.alloc(8)
    cuda.errors["cuMemAlloc"] = CUresult.CUDA_ERROR_NOT_KNOWN
    with pytest.raises(EngineError, match="cuMemAlloc: CUDA error unknown to this driver"):
        device.alloc(8)


def test_its_place_on_the_bus(cuda: Bindings) -> None:
    cuda.results["cuDeviceGetPCIBusId"] = (b"0000:0F:00.0\0\0\0\0",)
    assert CudaDevice().bus == "0000:0F:00.0"


def test_primary_context_is_retained_and_released(cuda: Bindings) -> None:
    CudaDevice().close()
    names = [call[0] for call in cuda.calls]
    assert names.count("cuDevicePrimaryCtxRetain") == names.count("cuDevicePrimaryCtxRelease") == 1
    assert ("cuCtxSetCurrent", 55) in cuda.calls
    assert cuda.calls[-2:] == [("cuEventDestroy", 77), ("cuDevicePrimaryCtxRelease", 0)]


def test_a_stream_follows_what_another_has_by_then(cuda: Bindings) -> None:
    CudaDevice().follow(3, 4)
    assert cuda.calls[-2:] == [("cuEventRecord", 77, 4), ("cuStreamWaitEvent", 3, 77, 0)]


def test_executable_that_cannot_be_uploaded_is_destroyed(cuda: Bindings) -> None:
    cuda.errors["cuGraphUpload"] = CUresult.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(EngineError, match="cuGraphUpload"):
        CudaDevice().instantiate(3, 4)
    assert cuda.calls[-1] == ("cuGraphExecDestroy", 66)


def test_capture_lets_other_threads_allocate(cuda: Bindings) -> None:
    CudaDevice().begin_capture(3)
    assert cuda.calls[-1][2].name == "CU_STREAM_CAPTURE_MODE_THREAD_LOCAL"


def test_bindings_have_all_that_is_called() -> None:
    bindings = import_module("cuda.bindings.driver")
    names = set(re.findall(r"\bcu[A-Z]\w+", inspect.getsource(driver)))
    assert len(names) > 20
    assert [name for name in sorted(names) if not hasattr(bindings, name)] == []


def test_a_matrix_is_described_by_its_tiles(cuda: Bindings) -> None:
    cuda.results["cuTensorMapEncodeTiled"] = ("described",)
    real = import_module("cuda.bindings.driver")
    for name in dir(real):
        if name.startswith("CUtensorMap") or name in ("cuuint32_t", "cuuint64_t"):
            setattr(cuda, name, getattr(real, name))
    tiled = Tiled(0, rows=532, columns=2048, itemsize=2, height=256)
    assert CudaDevice().describe_tiles(4096, tiled) == "described"
    name, kind, rank, address, shape, pitches, box, steps, _, swizzle, _, fill = cuda.calls[-1]
    assert (name, rank, address) == ("cuTensorMapEncodeTiled", 2, 4096)
    assert kind.name.endswith("BFLOAT16") and swizzle.name.endswith("128B") and fill.name.endswith("NONE")
    numbers = [[int(n) for n in part] for part in (shape, pitches, box, steps)]
    assert numbers == [[2048, 532], [4096], [64, 256], [1, 1]]


def test_a_kernel_may_begin_before_the_one_before_it_has_ended(cuda: Bindings) -> None:
    CudaDevice().launch_kernel(7, (3, 2, 1), 128, 1000, ((), ()), stream=0, early=True)
    name, config, kernel, *_ = cuda.calls[-1]
    assert (name, kernel) == ("cuLaunchKernelEx", 7)
    assert (config.gridDimX, config.gridDimY, config.gridDimZ) == (3, 2, 1)
    assert (config.blockDimX, config.sharedMemBytes, config.numAttrs) == (128, 1000, 1)
    (attribute,) = config.attrs
    assert attribute.id.name == "CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION"
    assert attribute.value.programmaticStreamSerializationAllowed == 1
    CudaDevice().launch_kernel(7, (3, 2, 1), 128, 1000, ((), ()), stream=0, early=False)
    assert (cuda.calls[-1][1].attrs, cuda.calls[-1][1].numAttrs) == ([], 0)
