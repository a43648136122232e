"""Times one bundle on one target: whole decisions as a robot asks for them, and each network alone.

Nothing is timed before the golden sample has passed, and a component's own time on a GPU comes from its own
graph, so that what a decision costs beyond its networks can be seen.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from pi05_runtime import golden
from pi05_runtime.engines.plan import PlanProgram
from pi05_runtime.geometry import COMPONENTS
from pi05_runtime.manifest import Manifest
from pi05_runtime.targets import find_target
from validate.benchmark.decisions import Calls, Decisions, time_calls, time_decisions
from validate.benchmark.floors import Chip, cost, parts
from validate.benchmark.inputs import chosen_variants, engine_files, golden_inputs
from validate.benchmark.launches import kernel_table
from validate.benchmark.loading import describe, load_policy
from validate.benchmark.networks import Networks, open_networks
from validate.benchmark.results import (
    Floor,
    Golden,
    Launches,
    Run,
    Shape,
    Steps,
    Timing,
    seed_rows,
    summarize,
)

SAMPLE_DIGITS = 4


@dataclass(frozen=True)
class Subject:
    """What is measured. engines: as for `pi05_runtime.load`. parameters: whose weights they are. keep: layers
    that a recipe leaves in bf16, where the manifest knows nothing of ONNX and its variants."""

    name: str
    profile: str
    bundle: Path
    target: str
    parameters: str
    engines: Path | None = None
    keep: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])


def measure(subject: Subject, steps: tuple[int, ...], calls: Calls, chip: Chip | None) -> Iterator[Run]:
    """The run, again after each step count with what is known by then.

    Errors: GateError if the golden sample fails, for a wrong engine is not timed, or if decisions differ that
    must not. And whatever loading raises.
    """
    asked = (subject.bundle, subject.target, subject.engines)
    with load_policy(*asked) as (policy, load):
        manifest = policy.manifest
        sample, _ = golden.observation(subject.bundle, manifest.golden.file, manifest.golden.prompt)
        start = time.perf_counter()
        policy.infer(sample)
        first_s = time.perf_counter() - start
        loading = describe(policy, load, *asked)
        judged = golden.judge(policy, subject.bundle, subject.target)
        run = Run(
            name=subject.name,
            target=subject.target,
            shape=_shape(subject, manifest, sample),
            recipes=_recipes(subject, manifest),
            golden=Golden({r.steps: r.cosine for r in judged}, judged[0].threshold),
            load_s=sum(loading.parts_s.values()),
            first_s=first_s,
            loading=loading,
            steps=(),
            floors={},
            keep=_kept(subject, manifest),
        )
        bus = load.device.bus if load.device else None
        decisions: dict[int, Decisions] = {}
        for n in steps:
            if calls.over:
                missing = f"{n} steps: the time limit came first"
                run = replace(run, missing=(*run.missing, missing))
                continue
            policy.steps = n
            decisions[n] = time_decisions(
                policy, sample, subject.target, bus, calls, f"{subject.name}, {n} steps"
            )
            yield _finished(run, manifest, decisions, {}, chip)
    alone: dict[int, dict[str, Timing]] = {}
    if find_target(subject.target).compute_capability is not None:
        with open_networks(*asked) as networks:
            for n in decisions:
                if calls.over:
                    missing = f"networks alone at {n} steps: the time limit came first"
                    run = replace(run, missing=(*run.missing, missing))
                    continue
                alone[n] = _summaries(networks.replays(n), calls, subject.name)
            if calls.over:
                missing = "copies and launches alone: the time limit came first"
                run = replace(run, missing=(*run.missing, missing))
            elif decisions:
                run = replace(run, outside=_summaries(networks.outside(), calls, subject.name))
                if isinstance(networks.program, PlanProgram):
                    table = _launches(
                        subject, networks, networks.program, run, manifest, max(decisions), chip
                    )
                    run = replace(run, launches=table)
    yield _finished(run, manifest, decisions, alone, chip)


def _summaries(work: Mapping[str, Callable[[], None]], calls: Calls, title: str) -> dict[str, Timing]:
    return {
        name: summarize(time_calls(one, calls, f"{title}, {name}"), calls.warm_up)
        for name, one in work.items()
    }


def _launches(
    subject: Subject,
    networks: Networks,
    program: PlanProgram,
    run: Run,
    manifest: Manifest,
    steps: int,
    chip: Chip | None,
) -> tuple[Launches, ...]:
    """The kernel table of what the run measured."""
    folder, entries = engine_files(subject.bundle, manifest, subject.target, subject.engines)
    files = {network: folder / entry.file for network, entry in entries.items()}
    choices = chosen_variants(subject.bundle, subject.target, subject.engines)
    shape, g = run.shape, manifest.geometry
    costs = {
        c: parts(c, g, shape.views, shape.prefix, shape.horizon, recipe, run.keep[c])
        for c, recipe in run.recipes.items()
    }
    return kernel_table(networks, program, files, choices, costs, steps, chip)


def _finished(
    run: Run,
    manifest: Manifest,
    decisions: dict[int, Decisions],
    alone: dict[int, dict[str, Timing]],
    chip: Chip | None,
) -> Run:
    """The run with all that follows from what was measured."""
    shape = run.shape
    costs = {
        c: cost(c, manifest.geometry, shape.views, shape.prefix, shape.horizon, recipe, run.keep[c])
        for c, recipe in run.recipes.items()
    }
    least = {c: counted.milliseconds(chip) if chip else None for c, counted in costs.items()}
    steps: list[Steps] = []
    for n, found in decisions.items():
        total = summarize(found.samples, found.inside["preprocess"].warm_up)
        networks = alone.get(n, {})
        known = [floor[0] * (n if c == "denoise" else 1) for c, floor in least.items() if floor]
        floor = sum(known) if len(known) == len(least) else None
        one = Steps(
            steps=n,
            total=total,
            samples_ms=tuple(round(s, SAMPLE_DIGITS) for s in found.samples),
            inside=found.inside,
            alone=networks,
            rest_ms=None,
            floor_ms=floor,
            distance=total.median_ms / floor if floor else None,
            paced=found.paced,
            capped=found.capped,
        )
        rest = total.median_ms - sum(one.added.values()) if networks else None
        steps.append(replace(one, rest_ms=rest))
    floors: dict[str, Floor] = {}
    for component, counted in costs.items():
        floor = least[component]
        measured = _component(steps, component)
        floors[component] = Floor(
            weights=dict(counted.weights),
            moved=counted.moved,
            operations=dict(counted.operations),
            bound=floor[1] if floor else None,
            floor_ms=floor[0] if floor else None,
            measured_ms=measured,
            distance=measured / floor[0] if floor and measured else None,
        )
    done = tuple(steps)
    return replace(run, steps=done, floors=floors, seed=seed_rows(done))


def _kept(subject: Subject, manifest: Manifest) -> dict[str, tuple[str, ...]]:
    """Component -> patterns of the layers that its recipe leaves in bf16."""
    return {
        c: subject.keep.get(c)
        or next((v.keep for v in manifest.components.get(c, ()) if v.recipe == recipe), ())
        for c, recipe in _recipes(subject, manifest).items()
    }


def _component(steps: list[Steps], component: str) -> float | None:
    """The component's median at the largest step count, denoise of one of these steps."""
    last = max(steps, key=lambda s: (bool(s.alone), s.steps))
    found = last.parts.get(component)
    return found if found is None or component != "denoise" else found / last.steps


def _recipes(subject: Subject, manifest: Manifest) -> dict[str, str]:
    _, engines = engine_files(subject.bundle, manifest, subject.target, subject.engines)
    found = {c: recipe for engine in engines.values() for c, recipe in engine.recipes.items()}
    return {c: found[c] for c in COMPONENTS}


def _shape(subject: Subject, manifest: Manifest, sample: Mapping[str, Any]) -> Shape:
    height, width, _ = next(iter(sample["images"].values())).shape
    views = len(manifest.interface.cameras)
    prompt = golden_inputs(subject.bundle, manifest)[0].prompt.bucket
    return Shape(
        profile=subject.profile,
        views=views,
        prefix=views * manifest.geometry.vision.tokens + prompt,
        prompt=prompt,
        horizon=manifest.interface.horizon,
        image=(height, width),
        parameters=subject.parameters,
    )
