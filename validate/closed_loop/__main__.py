"""`python -m validate.closed_loop`: episodes in a simulator, of any number of policies beside a reference.

    python -m validate.closed_loop OUT --suite metaworld --reference pytorch \\ --policy
    fp8=artifacts/bundle:cpu-ort --policy thor=ws://127.0.0.1:8000 --policy reference+black-images

A policy is NAME=BUNDLE:TARGET or NAME=BUNDLE:TARGET:STEPS, which is served here; NAME=ws://HOST:PORT, which
is served elsewhere, once a process (ws://A:8000,ws://B:8000); NAME=pytorch, the BF16 reference of the
pipeline in this folder; `expert`, the simulator's own; or a mutant of a policy named before it:
NAME+black-images, NAME+wrong-prompt, NAME+swapped-cameras. OUT holds every episode as it ends: the same
command goes on where it was ended, another policy or more scenes join what is there."""

import argparse
import os
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

from export.stage import progress, run_stage
from validate.closed_loop import page
from validate.closed_loop.parallel import Crew, Job, Result, on_machines, on_this_machine
from validate.closed_loop.policies import MUTANTS
from validate.closed_loop.records import ClosedLoopError, Run, Scene, Store
from validate.closed_loop.selftest import check_mutants
from validate.closed_loop.simulator import SimulatorProcess
from validate.closed_loop.sources import REFERENCE, check_sources, identity, read_sources
from validate.closed_loop.suites import SUITES

SIMULATOR = Path("artifacts/simulator/bin/python")


def parse(arguments: tuple[str, ...]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m validate.closed_loop", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="folder of the run")
    add("--suite", choices=SUITES, required=True)
    add("--task", action="append", help="of the suite; all if not given")
    add("--scenes", type=int, help="the first so many of each task; all if not given")
    add(
        "--reference",
        metavar="PLACE",
        help="what the others are compared with: pytorch, or a bundle or server",
    )
    add("--policy", action="append", default=[], metavar="NAME=PLACE")
    add(
        "--map",
        action="append",
        default=[],
        metavar="PART=KEY",
        help="for what is served here: docs/serve.md",
    )
    add("--simulator", type=Path, default=SIMULATOR, metavar="PYTHON", help=f"its Python; {SIMULATOR}")
    add("--processes", type=int, default=1, help="simulators at once, each with servers of its own")
    add("--ray", metavar="ADDRESS", help="spread them over this Ray cluster; auto: the one of this machine")
    add(
        "--self-test", action="store_true", help="spoil the reference's observations: it must be seen to fail"
    )
    return parser.parse_args(arguments)


def scenes(asked: argparse.Namespace) -> list[Scene]:
    """Errors: ClosedLoopError for what the suite does not have."""
    suite = SUITES[asked.suite]
    tasks = list(dict.fromkeys(asked.task or suite.tasks))
    count = suite.episodes if asked.scenes is None else asked.scenes
    if unknown := sorted(set(tasks) - set(suite.tasks)):
        raise ClosedLoopError(f"--task {unknown} found, some of {', '.join(suite.tasks)} expected")
    if not 1 <= count <= suite.episodes:
        raise ClosedLoopError(f"--scenes {count} found, 1 to {suite.episodes} expected of {asked.suite}")
    numbers = range(suite.first_scene, suite.first_scene + count)
    return [Scene(asked.suite, task, number) for task in tasks for number in numbers]


def results(crew: Crew, jobs: list[Job], asked: argparse.Namespace) -> Generator[Result]:
    processes = min(asked.processes, len(jobs))
    if asked.ray is not None:
        return on_machines(crew, jobs, processes, asked.ray)
    return on_this_machine(crew, jobs, processes)


def main(*arguments: str) -> None:
    asked = parse(arguments)
    if asked.processes < 1:
        raise ClosedLoopError(f"--processes {asked.processes} found, at least 1 expected")
    if asked.self_test and asked.reference is None:
        raise ClosedLoopError("--self-test spoils the reference: give --reference")
    mutants = [f"{REFERENCE}+{kind}" for kind in MUTANTS] if asked.self_test else []
    sources = read_sources(asked.reference, asked.policy + [m for m in mutants if m not in asked.policy])
    check_sources(sources, asked.processes)
    places = scenes(asked)
    python = Path(os.path.abspath(asked.simulator))  # not where its link leads: that is no environment
    with closing(SimulatorProcess(python, SUITES[asked.suite].simulator)) as simulator:
        versions = simulator.versions()
    numbers: dict[str, tuple[int, ...]] = {}
    for _, task, number in places:
        numbers[task] = (*numbers.get(task, ()), number)
    run = Run(
        reference=REFERENCE if REFERENCE in sources else None,
        suites={asked.suite: SUITES[asked.suite]},
        scenes={asked.suite: numbers},
        simulators={asked.suite: versions},
        policies={name: identity(source, sources, asked.map) for name, source in sources.items()},
    )
    store = Store(asked.out)
    with store.held(run):
        wanted = {scene: [name for name in sources if not store.has(scene, name)] for scene in places}
        jobs: list[Job] = [(scene, names) for scene, names in wanted.items() if names]
        crew = Crew(
            asked.suite, SUITES[asked.suite], python, sources, tuple(asked.map), versions, run.policies
        )
        with progress(total=sum(map(len, wanted.values())), desc="closed loop", unit="episode") as bar:
            if jobs:
                with closing(results(crew, jobs, asked)) as brought:
                    for episode, frames in brought:
                        store.put(episode, frames)
                        bar.update()
    print(page.write(asked.out))
    if asked.self_test:
        check_mutants([store.read(scene, name) for scene in places for name in (REFERENCE, *mutants)])


if __name__ == "__main__":
    run_stage(main)
