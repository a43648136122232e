"""The two tables that take work out of the engines: token embeddings and step modulations.

The token table is large (1 GB in the real model) and a decision reads a few dozen rows of it, so it
stays a memory map. The modulations hold all that time does to the network, for every step count.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pi05_runtime.bf16 import Bits
from pi05_runtime.errors import BundleError
from pi05_runtime.tensors import Floats, open_tensors

MODULATION = "modulation."


class TokenEmbedding:
    """Rows already scaled by sqrt(width): bf16 [rows, width]."""

    def __init__(self, table: Bits) -> None:
        self._table = table

    @classmethod
    def open(cls, path: Path, rows: int, width: int) -> "TokenEmbedding":
        """Maps a file of the rows into memory, little-endian and without a header. Errors: BundleError if it
        has not exactly its size."""
        expected = rows * width * 2
        found = path.stat().st_size if path.is_file() else 0
        if found != expected:
            raise BundleError(
                f"{path}: {found} bytes found, {expected} expected (bf16 [{rows}, {width}]); "
                "copy the bundle again"
            )
        # A plain array over the map: the subclass costs a robot microseconds at every index.
        return cls(np.asarray(np.memmap(path, "<u2", "r", shape=(rows, width))))

    @property
    def width(self) -> int:
        return self._table.shape[1]

    def write(self, ids: npt.NDArray[np.int64], out: Bits) -> None:
        """Brings the embeddings of ids [tokens], all of them rows of the table, to out [tokens, width]."""
        # Any other mode would go through memory of its own first.
        np.take(self._table, ids, 0, out, mode="clip")


@dataclass(frozen=True)
class Schedule:
    """One step count: dt = -1 / steps, and modulation float32 [steps, modulations, 3 * width]."""

    dt: np.float32
    modulation: Floats

    @property
    def steps(self) -> int:
        return len(self.modulation)


def read_schedule(path: Path, steps: int) -> Schedule:
    """The schedule of `steps` Euler steps. Errors: BundleError naming what the file has instead."""
    with open_tensors(path) as file:
        names = file.keys()
        counts = sorted(int(name.removeprefix(MODULATION)) for name in names)
        if steps not in counts:
            raise BundleError(
                f"{path}: no schedule for {steps} steps found, expected one of {counts}; choose one of "
                "these, or add it to `export.steps` and export again"
            )
        return Schedule(np.float32(-1.0 / steps), file.get_tensor(f"{MODULATION}{steps}"))
