"""Arrays as the GPU holds them: raw bytes of a port's dtype, with activations as bf16."""

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt

from pi05_runtime.bf16 import from_bf16, to_bf16
from pi05_runtime.engines.driver import Bytes, Device
from pi05_runtime.errors import EngineError
from pi05_runtime.geometry import Port
from pi05_runtime.tensors import Floats

ALIGNMENT = 256
"""Of every address a network is given, as of allocations: bytes."""
STORED = {"float32": np.dtype(np.float32), "int32": np.dtype(np.int32), "activation": np.dtype(np.uint16)}


def byte_size(port: Port, shape: tuple[int, ...]) -> int:
    """Bytes of the port's array. shape: its own, with no symbol left."""
    return math.prod(shape) * STORED[port.dtype].itemsize


def encode(port: Port, shape: tuple[int, ...], values: npt.NDArray[np.generic]) -> Bytes:
    """Contiguous bytes of `values`; an activation is rounded to bf16, to nearest even.

    Errors: EngineError if the shape is not `shape`, because a copy would then read or write elsewhere.
    """
    if values.shape != shape:
        raise EngineError(
            f"{port.name}: shape {list(values.shape)} found, {list(shape)} expected; pass arrays as the "
            "bundle's geometry has them"
        )
    if port.dtype == "activation":
        stored = to_bf16(values.astype(np.float32, copy=False))
    else:
        stored = values.astype(STORED[port.dtype], copy=False)
    return np.ascontiguousarray(stored).reshape(-1).view(np.uint8)


def decode(port: Port, shape: tuple[int, ...], raw: Bytes) -> Floats:
    """The port's array as float32 [*shape], a copy; exact for bf16."""
    if port.dtype == "activation":
        return from_bf16(raw.view(np.uint16)).reshape(shape)
    return raw.view(STORED[port.dtype]).astype(np.float32).reshape(shape)


class Block:
    """Arrays that go to the device together, in one copy: many small ones would each take as long.

    pinned: name -> its bytes on the host. addresses: name -> where they are on the device, once copied.
    """

    def __init__(
        self, device: Device, sizes: Mapping[str, int], alloc: Callable[[int], int], held: ExitStack
    ) -> None:
        """sizes: name -> bytes. alloc: device memory, for as long as `held`. Errors: EngineError."""
        self._device = device
        self.pinned: dict[str, Bytes] = {}
        self.addresses: dict[str, int] = {}
        places: dict[str, int] = {}
        end = 0
        for name, size in sizes.items():
            places[name] = end
            end += -(-size // ALIGNMENT) * ALIGNMENT
        self._whole = device.alloc_host(end)
        held.callback(device.free_host, self._whole)
        self._address = alloc(end)
        for name, start in places.items():
            self.pinned[name] = self._whole[start : start + sizes[name]]
            self.addresses[name] = self._address + start

    def upload(self, stream: int) -> None:
        """Enqueues the copy."""
        self._device.upload(self._address, self._whole, stream)
