"""What the gates leave behind, and how the bundle stage judges it again.

The gates themselves are in validate/, which imports this package and not the other way round; what
both sides share is here.
"""

from collections import Counter
from pathlib import Path

import msgspec
import numpy as np

from export.artifacts import ArtifactError, read_json
from export.engine import EngineRecord, decision_recipes, engine_file, read_record
from export.layer_table import read_table
from export.params import Params
from pi05_runtime.errors import GateError
from pi05_runtime.geometry import COMPONENTS
from pi05_runtime.manifest import ClosedLoop, Judged
from pi05_runtime.targets import coarsest
from pi05_runtime.verify import hash_file

METRICS = Path("metrics")
ACTIONS = "actions"
GATES = (*COMPONENTS, ACTIONS)
CLOSED_LOOP = "closed_loop"
MUTANTS = ("black-images", "wrong-prompt")
"""What the closed loop must refuse of the same engines, or it could not fail."""
UNQUANTIZED = {"bf16", "fp32"}


class Measured(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """cosine and floor_cosine: the smallest over observations, of the engine and of FP32 against the
    BF16 reference. error and floor_error: the largest relative L2 distance. Of actions, all observations
    are one vector."""

    cosine: float
    floor_cosine: float
    error: float
    floor_error: float


class Result(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """metrics/<target>/<gate>.json. judged: see the manifest. measured: output or step count
    -> measurement."""

    recipe: str
    threshold: float
    judged: Judged
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


class Acted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """metrics/<target>/closed_loop.json. recipes: component -> recipe. mutants: the same engines, given
    spoilt observations."""

    recipes: dict[str, str]
    found: ClosedLoop
    mutants: dict[str, ClosedLoop]


def expectation(params: Params, target: str, gate: str) -> tuple[str, float]:
    """(recipe, threshold) that a gate is held to: those of the engines as they were built.

    Errors: ArtifactError without engines.
    """
    networks = params.networks(target) if gate == ACTIONS else (gate,)
    recipe = coarsest(decision_recipes(target, networks).values())
    thresholds = params.gates.action_cosine if gate == ACTIONS else params.gates.component_cosine
    return recipe, thresholds[recipe]


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
    if held != (expected := expectation(params, target, gate)):
        raise GateError(f"{where}: held to {held}, params.yaml says {expected}: run `dvc repro`")
    steps = {f"actions.{n}" for n in params.gates.steps}
    if gate == ACTIONS and result.measured.keys() != steps:
        raise GateError(f"{where}: measured {sorted(result.measured)}, {sorted(steps)} expected")
    if not result.passed:
        raise GateError(f"{where}: cosine {result.cosine:.6f}, at least {result.threshold} expected")
    return result


def shortfalls(acted: ClosedLoop) -> list[str]:
    """Where it falls short of its thresholds, found against expected. NaN falls short."""
    success, loss = acted.successes / acted.scenes, (acted.lost - acted.won) / acted.scenes
    held = {
        f"success {success:.1%} found, at least {acted.least_success:.1%} expected": (
            success >= acted.least_success
        ),
        f"{loss:.1%} of scenes lost to the reference found, at most {acted.largest_loss:.1%} expected": (
            loss <= acted.largest_loss
        ),
        f"divergence {acted.divergence:.3g} found, at most {acted.largest_divergence:.3g} expected": (
            acted.divergence <= acted.largest_divergence
        ),
    }
    return [told for told, holds in held.items() if not holds]


def require_acted(params: Params, target: str) -> ClosedLoop:
    """What a target's engines did in the simulator, judged by the present params. Errors: GateError if it
    falls short, a mutant does not, or other engines, scenes or thresholds were judged."""
    path, asked = METRICS / target / f"{CLOSED_LOOP}.json", params.gates.closed_loop
    try:
        acted = read_json(path, Acted)
    except ArtifactError as error:
        raise GateError(f"no gate result: {error}; a gate that did not run has failed") from None
    scenes = len(asked.tasks) * asked.scenes
    wanted = (asked.suite, asked.tasks, scenes, asked.success, asked.loss, asked.divergence)
    expected = (decision_recipes(target, params.networks(target)), wanted)
    for f in (acted.found, *acted.mutants.values()):
        thresholds = (f.least_success, f.largest_loss, f.largest_divergence)
        if (held := (acted.recipes, (f.suite, f.tasks, f.scenes, *thresholds))) != expected:
            raise GateError(f"{path}: held to {held}, params.yaml says {expected}: run `dvc repro`")
    if acted.mutants.keys() != set(MUTANTS):
        raise GateError(f"{path}: mutants {list(acted.mutants)} found, {list(MUTANTS)} expected")
    if short := shortfalls(acted.found):
        raise GateError(f"{path}: {'; '.join(short)}")
    if blind := [name for name, mutant in acted.mutants.items() if not shortfalls(mutant)]:
        raise GateError(
            f"{path}: the mutants {blind} passed, all of {list(MUTANTS)} expected to fail, or the gate could "
            "not; raise gates.closed_loop.success, or lower its loss or divergence"
        )
    return acted.found


def require_engine(params: Params, target: str, network: str) -> EngineRecord:
    """An engine's record, judged by the present params and tables.

    Errors: GateError if it was built from other recipes, is not the file that was recorded, or runs fewer
    linear layers in a quantized precision than its components' tables plan.
    """
    record = read_record(target, network)
    for component, recipe in record.recipes.items():
        if recipe not in (wanted := params.recipes(target, component)):
            raise GateError(
                f"{target} {network}: {component} was built from {recipe}, params.yaml says {wanted}: run "
                "`dvc repro`"
            )
    if hash_file(engine_file(target, network)).sha256 != record.sha256:
        raise GateError(f"{target} {network}: {record.file} is not the one that was built: run `dvc repro`")
    tables = [read_table(component, recipe) for component, recipe in record.recipes.items()]
    planned = Counter(row.precision for table in tables for row in table.layers)
    # An engine that is the ONNX itself has nothing else to run.
    for precision in planned.keys() - UNQUANTIZED if record.folder == "engine" else ():
        if (found := record.layers.get(precision, 0)) != planned[precision]:
            raise GateError(
                f"{target} {network}: {found} layers run in {precision}, {planned[precision]} expected: "
                "build the engine again"
            )
    return record
