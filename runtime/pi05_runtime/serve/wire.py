"""openpi's encoding: msgpack, in which an array is a map of its bytes, dtype and shape under keys of bytes.

What is read comes from a network, so a frame may not ask for more memory than it has bytes, and the only
arrays are of plain numbers.
"""

import math
from typing import Any, cast

import msgpack  # pyright: ignore[reportMissingTypeStubs]
import numpy as np

from pi05_runtime.errors import ObservationError

_msgpack: Any = msgpack
ARRAY, SCALAR, DATA, DTYPE, SHAPE = b"__ndarray__", b"__npgeneric__", b"data", b"dtype", b"shape"
DTYPES = {dtype.str: dtype for dtype in map(np.dtype, "?bBhHiIlLefd")}
MAX_TEXT = 1 << 16
"""Bytes of a key or prompt; no prompt format takes a thousandth of it."""
MAX_ITEMS = 1 << 10
"""Items of a list or map, and lists and maps of a frame."""


def pack(value: object) -> bytes:
    """The frame that openpi's own packer makes of the same value."""
    return _msgpack.packb(value, default=_packable)


def unpack(frame: bytes | str) -> Any:
    """What a frame holds; its arrays are read-only views of it. Errors: ObservationError."""
    if isinstance(frame, str):
        raise ObservationError("frame: text found, msgpack in a binary frame expected; use openpi-client")
    reader = _Reader()
    try:
        return _msgpack.unpackb(
            frame,
            object_hook=reader.map,
            list_hook=reader.list,
            max_str_len=MAX_TEXT,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
            max_ext_len=0,
        )
    except ValueError as error:
        raise ObservationError(
            f"frame: {len(frame)} bytes that are no msgpack of an observation found "
            f"({str(error) or type(error).__name__}), one expected; use openpi-client"
        ) from error


class _Reader:
    """The hooks of one frame. Counting them keeps small items, a byte each, from becoming a gigabyte."""

    def __init__(self) -> None:
        self._count = 0

    def list(self, found: list[Any]) -> list[Any]:
        self._one_more()
        return found

    def map(self, found: dict[Any, Any]) -> Any:
        self._one_more()
        if ARRAY in found:
            return _array(found.get(DATA), found.get(DTYPE), found.get(SHAPE))
        if SCALAR in found:
            return _scalar(found.get(DATA), found.get(DTYPE))
        return found

    def _one_more(self) -> None:
        self._count += 1
        if self._count > MAX_ITEMS:
            raise ObservationError(
                f"frame: more than {MAX_ITEMS} lists and maps found, an observation expected; send images as "
                "arrays"
            )


def _array(data: Any, dtype: Any, shape: Any) -> Any:
    kind = _dtype(dtype)
    sizes = cast(list[Any], shape if isinstance(shape, list) else [None])
    if not isinstance(data, bytes) or not all(type(size) is int and size >= 0 for size in sizes):
        raise ObservationError(
            f"array: {type(data).__name__} of shape {shape!r} found, bytes and a list of sizes expected"
        )
    if len(data) != (expected := math.prod(sizes) * kind.itemsize):
        raise ObservationError(
            f"array: {len(data)} bytes found, {expected} expected of {dtype} {sizes}; send what is stated"
        )
    try:
        return np.ndarray(sizes, kind, data)
    except (ValueError, OverflowError) as error:
        raise ObservationError(f"array: shape {sizes} found, which no array has ({error})") from error


def _scalar(data: Any, dtype: Any) -> Any:
    kind = _dtype(dtype)
    try:
        return kind.type(data)
    except (TypeError, ValueError, OverflowError) as error:
        raise ObservationError(f"array: {data!r} found, a number of dtype {dtype} expected") from error


def _dtype(name: Any) -> "np.dtype[Any]":
    if not (isinstance(name, str) and name in DTYPES):
        raise ObservationError(f"array: dtype {name!r} found, one of {' '.join(DTYPES)} expected")
    return DTYPES[name]


def _packable(value: Any) -> dict[bytes, Any]:
    if isinstance(value, np.ndarray):
        array = cast("np.ndarray[Any, np.dtype[Any]]", value)
        return {ARRAY: True, DATA: array.tobytes(), DTYPE: array.dtype.str, SHAPE: array.shape}
    raise TypeError(f"{type(value).__name__} cannot be sent, arrays and plain values can")
