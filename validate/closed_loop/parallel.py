"""Many scenes at once: processes of this machine, or of others through Ray.

All that computes is a process already, the simulator and the policies' servers. So a thread that waits for
them is enough here, one a simulator, and on another machine an actor does the same. What they bring is stored
by the command alone. A machine that is lost takes no scene with it: another one runs it again."""

import os
import socket
import sys
import threading
from collections import deque
from collections.abc import Collection, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from msgspec import Struct

from pi05_runtime.errors import NetworkError
from validate.closed_loop.episodes import Frames, Station
from validate.closed_loop.records import ClosedLoopError, Episode, Scene, difference
from validate.closed_loop.simulator import SimulatorProcess
from validate.closed_loop.sources import REFERENCE, Remote, Source, identity, opened
from validate.closed_loop.suites import Suite

Job = tuple[Scene, Collection[str]]
"""A scene, and the policies that are wanted in it."""
Result = tuple[Episode, Frames]
CONNECT_S = 10


class Crew(Struct, frozen=True):
    """What every simulator of a run is given. name: of the suite. python: the simulator's. maps: as `pi05
    serve --map`. versions: of the simulator's packages. policies: name -> what identifies it."""

    name: str
    suite: Suite
    python: Path
    sources: dict[str, Source]
    maps: tuple[str, ...]
    versions: dict[str, str]
    policies: dict[str, dict[str, Any]]

    def check(self, simulator: SimulatorProcess, index: int) -> None:
        """Another machine has its own copy of everything, and its own 127.0.0.1. Errors: ClosedLoopError
        where that is not what the command has."""
        own = {
            name: Remote((source.addresses[index],)) if isinstance(source, Remote) else source
            for name, source in self.sources.items()
        }
        pairs = {
            f"policy {name!r}": (identity(own[name], own, self.maps), self.policies[name]) for name in own
        }
        pairs["simulator"] = simulator.versions(), self.versions
        for what, (found, expected) in pairs.items():
            if found != expected:
                raise ClosedLoopError(
                    f"{socket.gethostname()}: {what} is another one there: {difference(found, expected)}; "
                    "give every machine the same"
                )

    @contextmanager
    def station(self, simulator: SimulatorProcess, index: int) -> Iterator[Station]:
        prompts = simulator.prompts(self.name)
        with opened(self.sources, self.maps, simulator, prompts, index) as policies:
            yield Station(simulator, self.suite, policies, REFERENCE if REFERENCE in policies else None)


def on_this_machine(crew: Crew, jobs: Collection[Job], processes: int) -> Generator[Result]:
    """What the simulators bring, as it comes. Errors: the first Pi05Error of any, which ends them all."""
    left, brought = iter(jobs), SimpleQueue[Result | BaseException | None]()
    simulators: list[SimulatorProcess] = []
    lock, ended = threading.Lock(), threading.Event()

    def work(index: int) -> None:
        try:
            with closing(SimulatorProcess(crew.python, crew.suite.simulator)) as simulator:
                simulators.append(simulator)
                with crew.station(simulator, index) as station:
                    while not ended.is_set():
                        with lock:
                            job = next(left, None)
                        if job is None:
                            break
                        for result in station.run(*job):
                            brought.put(result)
            brought.put(None)
        except BaseException as error:
            brought.put(error)

    with ThreadPoolExecutor(processes) as pool:
        for index in range(processes):
            pool.submit(work, index)
        working = processes
        try:
            while working:
                match brought.get():
                    case None:
                        working -= 1
                    case BaseException() as error:
                        raise error
                    case result:
                        yield result
        finally:
            ended.set()
            for simulator in simulators:
                simulator.kill()


class Actor:
    """One simulator on a machine of the cluster, which has this checkout in the same folder."""

    def __init__(self, crew: Crew, index: int, folder: str) -> None:
        os.chdir(folder)
        self._crew, self._index, self._closing = crew, index, ExitStack()

    def open(self) -> list[Result]:
        """None yet. Errors, of both: Pi05Error."""
        process = closing(SimulatorProcess(self._crew.python, self._crew.suite.simulator))
        simulator = self._closing.enter_context(process)
        self._crew.check(simulator, self._index)
        self._station = self._closing.enter_context(self._crew.station(simulator, self._index))
        return []

    def run(self, job: Job) -> list[Result]:
        return list(self._station.run(*job))


def on_machines(crew: Crew, jobs: Collection[Job], processes: int, address: str) -> Generator[Result]:
    """The same, by the Ray cluster at this address. Errors: as above, and NetworkError for the cluster."""
    try:
        import ray  # pyright: ignore[reportMissingImports]
        from ray.exceptions import RayError, RayTaskError  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ClosedLoopError(f"--ray needs Ray ({error}); pip install --group ray") from error
    folder, path = os.getcwd(), {"PYTHONPATH": os.environ.get("PYTHONPATH", os.getcwd())}
    try:
        _connect(ray, address, path)
        if (found := ray.cluster_resources().get("CPU", 0)) < processes:
            raise ClosedLoopError(
                f"Ray's cluster at {address}: {found:g} CPUs found for {processes} processes, one for each "
                "expected; lower --processes"
            )
        remote: Any = ray.remote(num_cpus=1)(Actor)
        yield from _brought(ray, [remote.remote(crew, index, folder) for index in range(processes)], jobs)
    except RayTaskError as error:
        raise error.cause from None
    except (RayError, OSError) as error:
        raise NetworkError(f"Ray's cluster at {address}: {_line(error)}; run again to go on") from None
    finally:
        ray.shutdown()


def _connect(ray: Any, address: str, environment: dict[str, str]) -> None:
    try:
        if ":" in address:  # Ray would ask for a quarter of an hour
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), CONNECT_S).close()
        ray.init(address=address, runtime_env={"env_vars": environment}, log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise NetworkError(
            f"Ray's cluster at {address}: {_line(error)}; start it, and see that RAY_AUTH_MODE and its token "
            "are the same here and on every machine"
        ) from None


def _brought(ray: Any, actors: Sequence[Any], jobs: Collection[Job]) -> Generator[Result]:
    """A scene is given to an actor that is open: one that waits for a CPU would keep it from the others. One
    that does not get as far ends the run, as its machine is not fit; one that is lost later does not."""
    left, idle = deque(jobs), list[Any]()
    asked: dict[Any, tuple[Any, Job | None]] = {actor.open.remote(): (actor, None) for actor in actors}
    while left or any(job for _, job in asked.values()):
        (answer,), _ = ray.wait(list(asked))
        actor, job = asked.pop(answer)
        try:
            results = ray.get(answer)
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError as error:
            if job is None:
                raise
            left.appendleft(job)
            scene = " ".join(map(str, job[0]))
            if not (asked or idle):
                raise NetworkError(
                    f"Ray: the last actor was lost in {scene}, {len(left)} scenes are not run "
                    f"({_line(error)}); run again to go on"
                ) from None
            said = f"Ray: an actor was lost in {scene}, another runs it again: {_line(error)}"
            print(said, file=sys.stderr)
        else:
            idle.append(actor)
            yield from results
        while left and idle:
            actor, job = idle.pop(), left.popleft()
            asked[actor.run.remote(job)] = actor, job


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
