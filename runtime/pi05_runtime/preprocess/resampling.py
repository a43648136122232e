"""How a frame is resampled, as tables: for a GPU that does what images.py does on a CPU.

Both conventions are separable: an output pixel is a weighted sum of a few neighbours along a row, then along
a column. What differs is how many, and in which arithmetic.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pi05_runtime.interface import Convention
from pi05_runtime.preprocess.images import fit, positions

PRECISION_BITS = 22
"""Fractional bits of PIL's weights for 8-bit images."""


@dataclass(frozen=True)
class Axis:
    """starts int32 [outputs]: the first source pixel of each. weights [outputs, taps], zero behind the last
    tap: int32 of PRECISION_BITS for openpi, float32 for LeRobot."""

    starts: npt.NDArray[np.int32]
    weights: npt.NDArray[np.int32] | npt.NDArray[np.float32]

    @property
    def outputs(self) -> int:
        return self.weights.shape[0]

    @property
    def taps(self) -> int:
        return self.weights.shape[1]


@dataclass(frozen=True)
class Resampling:
    """Of frames of one size. top, left: where the resized frame lies in the square."""

    rows: Axis
    columns: Axis
    top: int
    left: int


def resampling(camera: str, height: int, width: int, size: int, convention: Convention) -> Resampling:
    """camera: for messages. Errors: ObservationError for a frame too thin to fit."""
    rows, columns = fit(camera, height, width, size)
    axis = _pil if convention == "openpi" else _linear
    return Resampling(axis(height, rows), axis(width, columns), (size - rows) // 2, (size - columns) // 2)


def _pil(source: int, outputs: int) -> Axis:
    """PIL's triangle filter, widened where it shrinks. Source: Pillow, Resample.c."""
    scale = source / outputs
    widened = max(scale, 1.0)
    taps = math.ceil(widened) * 2 + 1
    starts, weights = np.zeros(outputs, np.int32), np.zeros((outputs, taps), np.int32)
    for i in range(outputs):
        center = (i + 0.5) * scale
        first = max(int(center - widened + 0.5), 0)
        last = min(int(center + widened + 0.5), source)
        found = [max(1 - abs((j - center + 0.5) / widened), 0.0) for j in range(first, last)]
        total = sum(found)
        starts[i] = first
        weights[i, : len(found)] = [int(0.5 + w / total * (1 << PRECISION_BITS)) for w in found]
    return Axis(starts, weights)


def _linear(source: int, outputs: int) -> Axis:
    low, _, weight = positions(source, outputs)
    return Axis(low.astype(np.int32), np.stack([1 - weight, weight], 1))
