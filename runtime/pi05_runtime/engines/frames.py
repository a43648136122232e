"""Camera frames as they come, brought into the model's square on the GPU, as part of the decision's graph.

Frames of other sizes are another graph: sizes, tables and addresses are fixed in it.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pi05_runtime.engines.buffers import Block
from pi05_runtime.engines.driver import Device
from pi05_runtime.interface import Convention
from pi05_runtime.preprocess.resampling import Resampling, resampling

Sizes = tuple[tuple[int, int], ...]
"""(height, width) of each camera's frames."""


@dataclass(frozen=True)
class View:
    """A camera. frame and tables: addresses, the latter of starts and weights of columns, then of rows."""

    height: int
    width: int
    resampling: Resampling
    frame: int
    tables: tuple[int, int, int, int]


class Stager(Protocol):
    """What resizes. size: of the square. convention: how."""

    @property
    def size(self) -> int: ...

    @property
    def convention(self) -> Convention: ...

    def __call__(self, view: View, out: int, stream: int) -> None:
        """Enqueues a view's way to `out`, float32 [3, size, size] in [-1, 1]."""
        ...


class Frames:
    """All cameras at fixed sizes."""

    def __init__(
        self,
        device: Device,
        stager: Stager,
        sizes: Sizes,
        stream: int,
        alloc: Callable[[int], int],
        held: ExitStack,
    ) -> None:
        """alloc: device memory, for as long as `held`. Errors: ObservationError for a frame too thin."""
        self._device, self._stager = device, stager
        self._views: list[View] = []
        frames = {str(i): height * width * 3 for i, (height, width) in enumerate(sizes)}
        self._block = Block(device, frames, alloc, held)
        for i, (height, width) in enumerate(sizes):
            found = resampling(f"number {i}", height, width, stager.size, stager.convention)
            arrays = [a for axis in (found.columns, found.rows) for a in (axis.starts, axis.weights)]
            columns, column_weights, rows, row_weights = (self._place(a, alloc, stream) for a in arrays)
            tables = (columns, column_weights, rows, row_weights)
            self._views.append(View(height, width, found, self._block.addresses[str(i)], tables))

    def fill(self, frames: Sequence[npt.NDArray[np.uint8]]) -> None:
        for pinned, frame in zip(self._block.pinned.values(), frames, strict=True):
            pinned.reshape(frame.shape)[:] = frame

    def enqueue(self, images: int, stream: int) -> None:
        """images: float32 [views, 3, size, size]."""
        self._block.upload(stream)
        for i, view in enumerate(self._views):
            self._stager(view, images + i * 3 * self._stager.size**2 * 4, stream)

    def _place(self, array: npt.NDArray[np.generic], alloc: Callable[[int], int], stream: int) -> int:
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        address = alloc(data.nbytes)
        self._device.upload(address, data, stream)
        self._device.synchronize(stream)
        return address
