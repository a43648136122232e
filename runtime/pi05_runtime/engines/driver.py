"""What a CUDA engine needs of a GPU, and nothing else: a thin layer over the driver's own Python bindings.

The driver is there wherever a GPU is, on a robot too; no CUDA toolkit and no torch is needed. The device's
primary context is used because TensorRT, which calls the CUDA runtime, uses the same one.
"""

import ctypes
from importlib import import_module
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pi05_runtime.errors import EngineError, TargetError
from pi05_runtime.plan import TILE_WIDTH, Tiled

Bytes = npt.NDArray[np.uint8]
Grid = tuple[int, int, int]
Arguments = tuple[tuple[Any, ...], tuple[Any, ...]]
_TILED = {1: "UINT8", 2: "BFLOAT16"}
"""Bytes of an element -> the driver's name of such."""
ADVICE = "close other programs on this GPU, then run `pi05 selftest` on this bundle"


class Device(Protocol):
    """Memory, one-stream work and capture. Addresses, streams and graphs are plain ints.

    All that takes a stream is enqueued, except `synchronize`. Errors: EngineError naming the call.
    """

    def activate(self) -> None:
        """Makes the calling thread use this device; a robot may load in one thread and act in another."""
        ...

    def alloc(self, size: int) -> int:
        """Device memory of `size` bytes, aligned to 256."""
        ...

    def free(self, address: int) -> None: ...

    def alloc_host(self, size: int) -> Bytes:
        """Page-locked host memory [size], which a captured copy may read and write."""
        ...

    def free_host(self, memory: Bytes) -> None: ...

    def upload(self, address: int, source: Bytes, stream: int) -> None:
        """Copies contiguous host memory to the device. Keep `source` until the stream is synchronised."""
        ...

    def download(self, target: Bytes, address: int, stream: int) -> None:
        """Copies to contiguous host memory. It holds the bytes once the stream is synchronised."""
        ...

    def create_stream(self) -> int: ...

    def destroy_stream(self, stream: int) -> None: ...

    def synchronize(self, stream: int) -> None:
        """Waits for all that was enqueued. An error of that work comes out here."""
        ...

    def follow(self, stream: int, other: int) -> None:
        """What is enqueued on `stream` from now on waits for what is on `other` by now."""
        ...

    def begin_capture(self, stream: int) -> None: ...

    def end_capture(self, stream: int) -> int:
        """A graph of all that was enqueued since. On an error too, the stream no longer captures."""
        ...

    def instantiate(self, graph: int, stream: int) -> int:
        """The graph made executable, with all the device memory that its launches need."""
        ...

    def launch(self, executable: int, stream: int) -> None: ...

    def destroy_graph(self, graph: int) -> None: ...

    def destroy_executable(self, executable: int) -> None: ...

    def load_module(self, image: Bytes) -> int:
        """Machine code, ready to be launched. Errors: EngineError too for another chip's."""
        ...

    def unload_module(self, module: int) -> None: ...

    def find_kernel(self, module: int, entry: str, shared: int) -> int:
        """A function of the module, allowed `shared` bytes of dynamic shared memory."""
        ...

    def launch_kernel(
        self,
        kernel: int,
        grid: Grid,
        threads: int,
        shared: int,
        arguments: Arguments,
        stream: int,
        early: bool,
    ) -> None:
        """Enqueues one kernel. arguments: values, and their ctypes, None for what `describe_tiles` gave.
        early: its blocks may come before the kernel before it has ended, for which it waits itself."""
        ...

    def describe_tiles(self, address: int, tiled: Tiled) -> Any:
        """What a kernel needs to fetch tiles of a matrix that is at `address`."""
        ...

    def close(self) -> None:
        """Lets go of the device. What was allocated must have been freed."""
        ...


class CudaDevice:
    """A Device that is the first visible GPU; CUDA_VISIBLE_DEVICES chooses another."""

    def __init__(self) -> None:
        """Errors: TargetError without cuda-python, driver or GPU, EngineError if the GPU refuses."""
        self._cuda = _bindings()
        _initialize(self._cuda)
        self._ordinal = self._call("cuDeviceGet", 0)
        self._context = self._call("cuDevicePrimaryCtxRetain", self._ordinal)
        self._overlap = self._cuda.CUlaunchAttribute()
        serialized = self._cuda.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        self._overlap.id = serialized
        self._overlap.value.programmaticStreamSerializationAllowed = 1
        self.activate()
        untimed = self._cuda.CUevent_flags.CU_EVENT_DISABLE_TIMING
        self._event = self._call("cuEventCreate", int(untimed))

    def activate(self) -> None:
        self._call("cuCtxSetCurrent", self._context)

    def alloc(self, size: int) -> int:
        return int(self._call("cuMemAlloc", size))

    def free(self, address: int) -> None:
        self._call("cuMemFree", address)

    def alloc_host(self, size: int) -> Bytes:
        pointer = int(self._call("cuMemHostAlloc", size, 0))
        return np.frombuffer(memoryview((ctypes.c_uint8 * size).from_address(pointer)), np.uint8)

    def free_host(self, memory: Bytes) -> None:
        self._call("cuMemFreeHost", memory.ctypes.data)

    def upload(self, address: int, source: Bytes, stream: int) -> None:
        self._call("cuMemcpyHtoDAsync", address, source.ctypes.data, source.nbytes, stream)

    def download(self, target: Bytes, address: int, stream: int) -> None:
        self._call("cuMemcpyDtoHAsync", target.ctypes.data, address, target.nbytes, stream)

    def create_stream(self) -> int:
        # A stream that does not wait for the default one, whose use would break a capture.
        return int(self._call("cuStreamCreate", int(self._cuda.CUstream_flags.CU_STREAM_NON_BLOCKING)))

    def destroy_stream(self, stream: int) -> None:
        self._call("cuStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        self._call("cuStreamSynchronize", stream)

    def follow(self, stream: int, other: int) -> None:
        self._call("cuEventRecord", self._event, other)
        self._call("cuStreamWaitEvent", stream, self._event, 0)

    def begin_capture(self, stream: int) -> None:
        # Other threads of the robot may allocate meanwhile; this one may not.
        mode = self._cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> int:
        return int(self._call("cuStreamEndCapture", stream))

    def instantiate(self, graph: int, stream: int) -> int:
        executable = int(self._call("cuGraphInstantiate", graph, 0))
        try:
            # Without it the first launch would allocate.
            self._call("cuGraphUpload", executable, stream)
        except EngineError:
            self.destroy_executable(executable)
            raise
        return executable

    def launch(self, executable: int, stream: int) -> None:
        self._call("cuGraphLaunch", executable, stream)

    def destroy_graph(self, graph: int) -> None:
        self._call("cuGraphDestroy", graph)

    def destroy_executable(self, executable: int) -> None:
        self._call("cuGraphExecDestroy", executable)

    def load_module(self, image: Bytes) -> int:
        return int(self._call("cuModuleLoadData", image.tobytes()))

    def unload_module(self, module: int) -> None:
        self._call("cuModuleUnload", module)

    def find_kernel(self, module: int, entry: str, shared: int) -> int:
        kernel = self._call("cuModuleGetFunction", module, entry.encode())
        attribute = self._cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        self._call("cuFuncSetAttribute", kernel, attribute, shared)
        return int(kernel)

    def launch_kernel(
        self,
        kernel: int,
        grid: Grid,
        threads: int,
        shared: int,
        arguments: Arguments,
        stream: int,
        early: bool,
    ) -> None:
        config = self._cuda.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = grid
        config.blockDimX, config.blockDimY, config.blockDimZ = threads, 1, 1
        config.sharedMemBytes, config.hStream = shared, stream
        config.attrs = [self._overlap] if early else []
        config.numAttrs = len(config.attrs)
        self._call("cuLaunchKernelEx", config, kernel, arguments, 0)

    def describe_tiles(self, address: int, tiled: Tiled) -> Any:
        cuda, pitch = self._cuda, tiled.columns * tiled.itemsize
        kinds, dtype = cuda.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{_TILED[tiled.itemsize]}"
        return self._call(
            "cuTensorMapEncodeTiled",
            getattr(kinds, dtype),
            2,
            address,
            [cuda.cuuint64_t(n) for n in (tiled.columns, tiled.rows)],
            [cuda.cuuint64_t(pitch)],
            [cuda.cuuint32_t(n) for n in (TILE_WIDTH // tiled.itemsize, tiled.height)],
            [cuda.cuuint32_t(1), cuda.cuuint32_t(1)],
            cuda.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            cuda.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
            cuda.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            cuda.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )

    def close(self) -> None:
        self._call("cuEventDestroy", self._event)
        self._call("cuDevicePrimaryCtxRelease", self._ordinal)

    @property
    def name(self) -> str:
        """Of the GPU, as its driver has it."""
        return self._call("cuDeviceGetName", 96, self._ordinal).split(b"\0")[0].decode()

    @property
    def bus(self) -> str:
        """The GPU's place on the PCI bus, by which other programs know it too."""
        return self._call("cuDeviceGetPCIBusId", 16, self._ordinal).split(b"\0")[0].decode()

    def free_memory(self) -> int:
        """Bytes of device memory that nobody uses."""
        free, _ = self._call("cuMemGetInfo")
        return int(free)

    def _call(self, name: str, *arguments: Any) -> Any:
        return call(self._cuda, name, *arguments)


def call(cuda: Any, name: str, *arguments: Any) -> Any:
    """The driver's function `name`: its result, a tuple of them if several. Errors: EngineError.

    cuda: the bindings.
    """
    error, *results = getattr(cuda, name)(*arguments)
    if error != cuda.CUresult.CUDA_SUCCESS:
        raise EngineError(f"{name}: CUDA error {_describe(cuda, error)} found; {ADVICE}")
    return results[0] if len(results) == 1 else tuple(results)


def compute_capability() -> str | None:
    """That of the first visible GPU, as "11.0"; None where there is no driver or no GPU.

    Errors: TargetError without cuda-python, because then nobody knows.
    """
    cuda = _bindings()
    try:
        _initialize(cuda)
    except TargetError:
        return None
    device = call(cuda, "cuDeviceGet", 0)
    prefix = "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_"
    codes = [getattr(cuda.CUdevice_attribute, prefix + part) for part in ("MAJOR", "MINOR")]
    return ".".join(str(call(cuda, "cuDeviceGetAttribute", code, device)) for code in codes)


def _bindings() -> Any:
    try:
        return import_module("cuda.bindings.driver")
    except ImportError as error:
        raise TargetError(
            f"engines on a GPU need cuda-python, which does not import here ({error}); "
            "pip install 'pi05-runtime[plan]', or [trt] or [rtx]"
        ) from error


def _initialize(cuda: Any) -> None:
    """Errors: TargetError if there is no driver or no GPU."""
    try:
        error = cuda.cuInit(0)[0]
    except RuntimeError as missing:  # the bindings raise it when libcuda is not there
        raise _no_gpu(f"no NVIDIA driver ({missing})") from missing
    if error != cuda.CUresult.CUDA_SUCCESS:
        raise _no_gpu(_describe(cuda, error))
    if cuda.cuDeviceGetCount()[1] == 0:
        raise _no_gpu("a driver without a GPU")


def _no_gpu(found: str) -> TargetError:
    return TargetError(
        f"this target needs an NVIDIA GPU and its driver, {found} found; check `nvidia-smi`, or choose the "
        "target cpu-ort"
    )


def _describe(cuda: Any, error: Any) -> str:
    """CUDA's name of an error and what it says about it."""
    texts = (cuda.cuGetErrorName(error)[1], cuda.cuGetErrorString(error)[1])
    name, text = (part.decode() if part else "unknown to this driver" for part in texts)
    return f"{name} ({text})"
