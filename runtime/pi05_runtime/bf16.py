"""bf16 as its bits, uint16: numpy has no such type."""

import numpy as np
import numpy.typing as npt

from pi05_runtime.tensors import Floats

Bits = npt.NDArray[np.uint16]


def to_bf16(values: Floats) -> Bits:
    """bf16 bits of float32 values, rounded to nearest even; NaN stays NaN."""
    bits = values.view(np.uint32)
    rounded = ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)
    # The carry of a NaN would make it an infinity, or a zero.
    rounded[np.isnan(values)] = 0x7FC0
    return rounded


def from_bf16(bits: Bits) -> Floats:
    """A bf16 is the upper half of a float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
