"""The process that touches what may crash or hang: a library's import, the driver of a GPU.

`python -m pi05_runtime.doctor.probe`, started by reading.py and by nothing else. The driver is called through
ctypes: a doctor must see a GPU before cuda-python is installed.
"""

import ctypes
from collections.abc import Callable
from importlib import metadata
from typing import Any, Literal

import msgspec

from pi05_runtime.child import serve
from pi05_runtime.doctor.device import Gpu
from pi05_runtime.errors import TargetError
from pi05_runtime.lock import device_capability, installed_version
from pi05_runtime.targets import Library

CUDA, NVML = "libcuda.so.1", "libnvidia-ml.so.1"
_INTEGRATED, _MAJOR, _MINOR = 18, 75, 76
"""CUdevice_attribute."""
_TEXT = 96
"""Bytes of a name; NVML and the driver write less."""


class Question(msgspec.Struct, frozen=True):
    """What to look at."""

    about: Library | Literal["cuda-python", "gpu"]


class Version(msgspec.Struct, frozen=True, tag=True):
    """What a library states itself."""

    text: str


class Found(msgspec.Struct, frozen=True, tag=True):
    """The GPU that is there."""

    gpu: Gpu


class Problem(msgspec.Struct, frozen=True, tag=True):
    """Why there is neither."""

    text: str


Finding = Version | Found | Problem


def look(question: Question) -> Finding:
    """The answer, whatever is wrong here."""
    try:
        if question.about == "gpu":
            return Found(read_gpu(ctypes.CDLL))
        if question.about == "cuda-python":
            return Version(_cuda_python())
        return Version(installed_version(question.about))
    except TargetError as error:
        return Problem(str(error.__cause__ or error))
    except Exception as error:  # a library that is half installed fails in ways of its own
        return Problem(f"{type(error).__name__}: {error}")


def read_gpu(open_library: Callable[[str], Any]) -> Gpu:
    """The first visible GPU. open_library: as `ctypes.CDLL`.

    Errors: TargetError for no driver, no GPU or one that refuses.
    """
    try:
        cuda = open_library(CUDA)
    except OSError as error:
        raise TargetError(f"no NVIDIA driver: {error}") from None

    def call(name: str, *arguments: Any) -> None:
        if code := getattr(cuda, name)(*arguments):
            raise TargetError(f"{name}: CUDA error {code}{_error_name(cuda, code)}")

    def attribute(code: int) -> int:
        call("cuDeviceGetAttribute", ctypes.byref(value), code, device)
        return value.value

    value, device, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, context = ctypes.create_string_buffer(_TEXT), ctypes.c_void_p()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(device), 0)
    call("cuDriverGetVersion", ctypes.byref(version))
    call("cuDeviceGetName", name, _TEXT, device)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    call("cuCtxSetCurrent", context)
    call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    return Gpu(
        name=name.value.decode(errors="replace"),
        compute_capability=f"{attribute(_MAJOR)}.{attribute(_MINOR)}",
        cuda=f"{version.value // 1000}.{version.value % 1000 // 10}",
        driver=_driver_version(open_library),
        memory=total.value,
        memory_free=free.value,
        shared=attribute(_INTEGRATED) == 1,
    )


def _error_name(cuda: Any, code: int) -> str:
    text = ctypes.c_char_p()
    cuda.cuGetErrorName(code, ctypes.byref(text))
    return f" ({text.value.decode()})" if text.value else ""


def _driver_version(open_library: Callable[[str], Any]) -> str | None:
    text = ctypes.create_string_buffer(_TEXT)
    try:
        nvml = open_library(NVML)
    except OSError:
        return None
    if nvml.nvmlInit_v2() or nvml.nvmlSystemGetDriverVersion(text, _TEXT):
        return None
    return text.value.decode()


def _cuda_python() -> str:
    """Errors: TargetError if the bindings do not import."""
    device_capability()
    return metadata.version("cuda-bindings")


if __name__ == "__main__":
    serve(Question, look)
