"""Arrays as the runtime names them, and the safetensors files of a bundle."""

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from pi05_runtime.errors import BundleError

Floats = npt.NDArray[np.float32]


class TensorFile(Protocol):
    """The part of an open safetensors file that is used; its library has no types."""

    def keys(self) -> list[str]: ...

    def get_tensor(self, name: str) -> npt.NDArray[Any]: ...


@contextmanager
def open_tensors(path: Path) -> Generator[TensorFile, None, None]:
    """Opens a file to read tensors one by one. Errors: BundleError if it cannot be read."""
    try:
        with cast(AbstractContextManager[TensorFile], safe_open(path, framework="numpy")) as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise BundleError(
            f"{path}: not readable as safetensors ({error}); restore the file, or copy the bundle again"
        ) from error
