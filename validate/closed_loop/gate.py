"""Stage `closed_loop`: what a target's engines do in a simulator, beside the BF16 reference, before a bundle.

What acts is what the other gates judge, the engines or their twin, in this process: a bundle is made of
nothing that has not passed, and its manifest says what passed. A gate that cannot fail is none, so the same
engines act blind and misled too, and have to fall short.
"""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from export.artifacts import ARTIFACTS, SCHEDULE, TABLES, write_json
from export.checkpoint.canonical import read_description
from export.engine import decision_recipes, read_record
from export.engine.judge import open_judged
from export.gates import CLOSED_LOOP, METRICS, MUTANTS, Acted, require_acted
from export.observations import preprocessor
from export.params import ClosedLoopParams, Params, load_params
from export.stage import run_stage
from pi05_runtime.engines import Engine
from pi05_runtime.errors import GateError, ParamsError
from pi05_runtime.manifest import ClosedLoop, Judged
from pi05_runtime.preprocess.normalize import unnormalize_actions
from pi05_runtime.serve.keys import Keys
from pi05_runtime.staging import staged
from pi05_runtime.tables import read_schedule
from validate.closed_loop.episodes import run_scenes
from validate.closed_loop.policies import Acts, Infers, InProcess, Spoiled
from validate.closed_loop.records import Run, Store
from validate.closed_loop.reference import ReferencePolicy
from validate.closed_loop.results import Results, markdown, read_episodes, summarize, write_results
from validate.closed_loop.simulator import SimulatorProcess
from validate.closed_loop.suites import SUITES
from validate.metrics import DIGITS

FOLDER = ARTIFACTS / CLOSED_LOOP
REFERENCE, ENGINES = "reference", "engines"


class Candidate:
    """Engines that are in no bundle yet, as `pi05_runtime.policy.Policy` is of one."""

    def __init__(self, params: Params, engine: Engine) -> None:
        self.manifest = read_description()
        self._prepare, self._engine = preprocessor(params), engine
        self._schedule = read_schedule(TABLES / SCHEDULE, params.export.default_steps)

    def infer(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """As `Policy.infer`, with noise."""
        noise = np.asarray(observation["noise"], np.float32)
        decision = self._engine.decide(self._prepare(observation), noise, self._schedule)
        interface = self.manifest.interface
        actions = unnormalize_actions(decision.actions, interface.normalization, interface.action_dims)
        return {"actions": actions, "timings": decision.milliseconds}


def scenes(asked: ClosedLoopParams) -> range:
    """The numbers of the scenes. Errors: ParamsError for what the suite does not have."""
    if (suite := SUITES.get(asked.suite)) is None:
        raise ParamsError(f"gates.closed_loop.suite: {asked.suite!r} found, one of {sorted(SUITES)} expected")
    if unknown := [task for task in asked.tasks if task not in suite.tasks]:
        raise ParamsError(f"gates.closed_loop.tasks: {unknown} found, some of {list(suite.tasks)} expected")
    if asked.scenes > suite.episodes:
        raise ParamsError(
            f"gates.closed_loop.scenes: {asked.scenes} found, at most {suite.episodes} of a task of "
            f"{asked.suite} expected"
        )
    return range(suite.first_scene, suite.first_scene + asked.scenes)


def act(params: Params, target: str, engine: Engine, out: Path) -> Results:
    """Every scene of the gate, acted by reference, engines and mutants; episodes and films are in `out`."""
    asked = params.gates.closed_loop
    numbers, suite, simulator = scenes(asked), SUITES[asked.suite], Path(asked.simulator)
    with closing(SimulatorProcess(simulator, suite.simulator)) as process:
        versions, prompts = process.versions(), process.prompts(asked.suite)

    def in_process(policy: Infers) -> Acts:
        return InProcess(policy, Keys(policy.manifest.interface, asked.map))

    engines = in_process(Candidate(params, engine))
    policies = {REFERENCE: in_process(ReferencePolicy(params)), ENGINES: engines}
    policies |= {mutant(kind): Spoiled(engines, kind, prompts) for kind in MUTANTS}
    built = {network: read_record(target, network).sha256 for network in params.networks(target)}
    identities = {REFERENCE: {"recipe": "bf16"}, ENGINES: built}
    identities |= {mutant(kind): {"spoiled": kind, "policy": built} for kind in MUTANTS}
    places = {asked.suite: {task: tuple(numbers) for task in asked.tasks}}
    run = Run(REFERENCE, {asked.suite: suite}, places, {asked.suite: versions}, identities)
    store = Store(out)
    with store.held(run):
        run_scenes(store, asked.suite, asked.tasks, numbers, policies, REFERENCE, simulator)
    results = summarize(run, read_episodes(out, run))
    write_results(out, results)
    return results


def judge(params: Params, target: str, judged: Judged, results: Results) -> None:
    """Writes metrics/<target>/closed_loop.json, prints the table, and raises GateError unless it passed."""
    print(markdown(results))
    mutants = {kind: _acted(params, judged, results, mutant(kind)) for kind in MUTANTS}
    recipes = decision_recipes(target, params.networks(target))
    acted = Acted(recipes, _acted(params, judged, results, ENGINES), mutants)
    write_json(METRICS / target / f"{CLOSED_LOOP}.json", acted)
    require_acted(params, target)


def mutant(kind: str) -> str:
    return f"{ENGINES}+{kind}"


def main(target: str) -> None:
    params = load_params()
    (METRICS / target / f"{CLOSED_LOOP}.json").unlink(missing_ok=True)  # a gate that ends early has failed
    engine, judged = open_judged(target, params.networks(target))
    with closing(engine), staged(FOLDER / target) as out:
        results = act(params, target, engine, out)
    judge(params, target, judged, results)


def _acted(params: Params, judged: Judged, results: Results, policy: str) -> ClosedLoop:
    """Errors: GateError unless the policy was asked wherever the reference decided."""
    asked, row = params.gates.closed_loop, results.row(params.gates.closed_loop.suite, policy)
    decisions = results.row(row.suite, REFERENCE).decision_ms
    if not (decisions and row.divergence and row.pairs and row.divergence.count == decisions.count):
        found = row.divergence.count if row.divergence else 0
        raise GateError(
            f"{policy}: {found} answers found, {decisions.count if decisions else 'some'} expected, one for "
            f"each decision of the reference; {FOLDER} has the errors of the episodes"
        )
    return ClosedLoop(
        suite=row.suite,
        tasks=asked.tasks,
        scenes=row.success.of,
        successes=row.success.count,
        lost=len(row.pairs.lost),
        won=len(row.pairs.won),
        divergence=round(row.divergence.p99, DIGITS),
        judged=judged,
        least_success=asked.success,
        largest_loss=asked.loss,
        largest_divergence=asked.divergence,
    )


if __name__ == "__main__":
    run_stage(main)
