"""The libraries that run engines, each brought in only when its target is asked for."""

from importlib import import_module
from typing import Any

from pi05_runtime.errors import TargetError
from pi05_runtime.targets import Library as Library

ADVICE = {
    "onnxruntime": "pip install 'pi05-runtime[ort]'",
    "tensorrt": "it comes with JetPack: apt install python3-libnvinfer, and give the virtual environment "
    "--system-site-packages",
    "tensorrt_rtx": "pip install 'pi05-runtime[rtx]'",
    "triton": "pip install --constraint constraints.txt --group plan",
}


def load_library(library: str) -> Any:
    """The library's module. Errors: TargetError, with how to get it, if it does not import."""
    try:
        match library:
            case "onnxruntime":
                return import_module("onnxruntime")
            case "tensorrt":
                return import_module("tensorrt")
            case "tensorrt_rtx":
                return import_module("tensorrt_rtx")
            case "triton":
                return import_module("triton")
            case _:
                raise TargetError(f"library {library!r} found, one of {sorted(ADVICE)} expected")
    except ImportError as error:
        raise TargetError(
            f"this target needs {library}, which does not import here ({error}); {ADVICE[library]}"
        ) from error
