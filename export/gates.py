"""What the gates leave behind, and how the bundle stage judges it again.

The gates themselves are in validate/, which imports this package and not the other way round; what
both sides share is here.
"""

from pathlib import Path

import msgspec
import numpy as np

from export.artifacts import ArtifactError, read_json
from export.params import Params
from pi05_runtime.errors import GateError
from pi05_runtime.geometry import COMPONENTS

METRICS = Path("metrics")
ACTIONS = "actions"
GATES = (*COMPONENTS, ACTIONS)
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
    observations: int
    measured: dict[str, Measured]

    @property
    def cosine(self) -> float:
        """The smallest cosine of all; NaN if there is none, or any is."""
        return float(np.min([m.cosine for m in self.measured.values()] or [np.nan]))

    @property
    def passed(self) -> bool:
        """Clearly at or above the threshold: no measurement and NaN do not pass."""
        return self.cosine >= self.threshold


def expectation(params: Params, gate: str) -> tuple[str, float]:
    """(recipe, threshold) that params.yaml holds a gate to."""
    if gate == ACTIONS:
        return params.coarsest, params.gates.action_cosine[params.coarsest]
    recipe = params.components[gate].recipe
    return recipe, params.gates.component_cosine[recipe]


def read_result(target: str, gate: str) -> Result:
    """Errors: GateError if the gate left no result, which counts as failed."""
    path = METRICS / target / f"{gate}.json"
    try:
        return read_json(path, Result)
    except ArtifactError as error:
        raise GateError(f"no gate result: {error}; a gate that did not run has failed") from None


def require_passed(params: Params, target: str, gate: str) -> Result:
    """A gate's result, judged by the present params. Errors: GateError if it does not pass, or was
    measured under another recipe, threshold or set of steps."""
    result = read_result(target, gate)
    where = f"{METRICS / target / gate}.json"
    held = (result.recipe, result.threshold)
    if held != (expected := expectation(params, gate)):
        raise GateError(f"{where}: held to {held}, params.yaml says {expected}: run `dvc repro`")
    steps = {f"actions.{n}" for n in params.gates.steps}
    if gate == ACTIONS and result.measured.keys() != steps:
        raise GateError(f"{where}: measured {sorted(result.measured)}, {sorted(steps)} expected")
    if not result.passed:
        raise GateError(f"{where}: cosine {result.cosine:.6f}, at least {result.threshold} expected")
    return result
