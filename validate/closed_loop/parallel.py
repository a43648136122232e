"""Many scenes at once: processes of this machine, or of others through Ray.

All that computes is a process already, the simulator and the policies' servers. So a thread that waits for
them is enough here, one a simulator, and on another machine an actor does the same. What they bring is stored
by the command alone."""

import os
import socket
import threading
from collections.abc import Collection, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from msgspec import Struct

from pi05_runtime.errors import NetworkError
from validate.closed_loop.episodes import Frames, Station
from validate.closed_loop.records import ClosedLoopError, Episode, Scene
from validate.closed_loop.simulator import SimulatorProcess
from validate.closed_loop.sources import REFERENCE, Source, opened
from validate.closed_loop.suites import Suite

Job = tuple[Scene, Collection[str]]
"""A scene, and the policies that are wanted in it."""
Result = tuple[Episode, Frames]
CONNECT_S = 10


class Crew(Struct, frozen=True):
    """What every simulator of a run is given. name: of the suite. python: the simulator's. maps: as `pi05
    serve --map`."""

    name: str
    suite: Suite
    python: Path
    sources: dict[str, Source]
    maps: tuple[str, ...]

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
        self._crew, self._index = crew, index
        self._station: Station | None = None
        self._closing = ExitStack()

    def run(self, job: Job) -> list[Result]:
        if self._station is None:
            process = closing(SimulatorProcess(self._crew.python, self._crew.suite.simulator))
            station = self._crew.station(self._closing.enter_context(process), self._index)
            self._station = self._closing.enter_context(station)
        return list(self._station.run(*job))


def on_machines(crew: Crew, jobs: Collection[Job], processes: int, address: str) -> Generator[Result]:
    """The same, by the Ray cluster at this address. Errors: as above, and NetworkError for the cluster."""
    try:
        import ray  # pyright: ignore[reportMissingImports]
        from ray.exceptions import RayError, RayTaskError  # pyright: ignore[reportMissingImports]
        from ray.util import ActorPool  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ClosedLoopError(f"--ray needs Ray ({error}); pip install --group ray") from error
    folder, path = os.getcwd(), {"PYTHONPATH": os.environ.get("PYTHONPATH", os.getcwd())}
    try:
        if ":" in address:  # Ray would ask for a quarter of an hour
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), CONNECT_S).close()
        ray.init(address=address, runtime_env={"env_vars": path}, log_to_driver=False)
        if (found := ray.cluster_resources().get("CPU", 0)) < processes:
            raise ClosedLoopError(
                f"Ray's cluster at {address}: {found:g} CPUs found for {processes} processes, one for each "
                "expected; lower --processes"
            )
        remote: Any = ray.remote(num_cpus=1)(Actor)
        pool = ActorPool([remote.remote(crew, index, folder) for index in range(processes)])
        for results in pool.map_unordered(lambda actor, job: actor.run.remote(job), list(jobs)):
            yield from results
    except RayTaskError as error:
        raise error.cause from None
    except (RayError, OSError, RuntimeError, ValueError) as error:
        raise NetworkError(f"Ray's cluster at {address}: {error}; run again to go on") from None
    finally:
        ray.shutdown()
