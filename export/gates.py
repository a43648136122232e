"""What the gates leave behind, and how the bundle stage reads it.

The gates themselves are in validate/, which imports this package and not the other way round; what
both sides share is here.
"""

from pathlib import Path

import msgspec

from export.stage import ARTIFACTS
from pi05_runtime.errors import GateError

METRICS = Path("metrics")
REFERENCE = ARTIFACTS / "reference"
NOISE_SEED = 10_000
"""Seed of the first held-out observation's flow noise; calibration counts from 0."""


class Measured(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """cosine and floor_cosine: the smallest over observations, of the engine and of FP32 against the
    BF16 reference. error and floor_error: the largest relative L2 distance."""

    cosine: float
    floor_cosine: float
    error: float
    floor_error: float


class Result(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """metrics/<target>/<gate>.json. measured: output or step count -> measurement."""

    recipe: str
    threshold: float
    passed: bool
    observations: int
    measured: dict[str, Measured]

    @property
    def cosine(self) -> float:
        """The smallest cosine of all."""
        return min(m.cosine for m in self.measured.values())


def read_result(gate: str) -> Result:
    """The result of `<target>/<gate>`. Errors: GateError if it is missing or did not pass."""
    path = METRICS / f"{gate}.json"
    try:
        result = msgspec.json.decode(path.read_bytes(), type=Result)
    except (OSError, msgspec.DecodeError) as error:
        raise GateError(f"{path}: no gate result ({error}); a gate that did not run has failed") from None
    if not result.passed:
        raise GateError(f"{path}: cosine {result.cosine:.6f}, below {result.threshold}: this gate failed")
    return result
