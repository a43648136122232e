"""Camera frames as they come, brought into the model's square on the GPU.

Each goes to the device as soon as it is in pinned memory, so that one travels while the next is copied there.
What resizes them is captured: frames of other sizes are another graph, in which sizes, tables and addresses
are fixed.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pi05_runtime.engines.driver import Bytes, Device
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
        self._pinned: list[Bytes] = []
        for i, (height, width) in enumerate(sizes):
            found = resampling(f"number {i}", height, width, stager.size, stager.convention)
            arrays = [a for axis in (found.columns, found.rows) for a in (axis.starts, axis.weights)]
            columns, column_weights, rows, row_weights = (self._place(a, alloc, stream) for a in arrays)
            tables = (columns, column_weights, rows, row_weights)
            size = height * width * 3
            self._pinned.append(device.alloc_host(size))
            held.callback(device.free_host, self._pinned[-1])
            self._views.append(View(height, width, found, alloc(size), tables))

    def bring(self, frames: Sequence[npt.NDArray[np.uint8]], stream: int) -> None:
        """Enqueues each one's copy to the device, where the next is brought to the same place."""
        for pinned, view, frame in zip(self._pinned, self._views, frames, strict=True):
            pinned.reshape(frame.shape)[:] = frame
            self._device.upload(view.frame, pinned, stream)

    def enqueue(self, images: int, stream: int) -> None:
        """Resizes what was brought. images: float32 [views, 3, size, size]."""
        for i, view in enumerate(self._views):
            self._stager(view, images + i * 3 * self._stager.size**2 * 4, stream)

    def _place(self, array: npt.NDArray[np.generic], alloc: Callable[[int], int], stream: int) -> int:
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        address = alloc(data.nbytes)
        self._device.upload(address, data, stream)
        self._device.synchronize(stream)
        return address
