"""A simulator as the harness sees it: a process with a Python of its own, asked over a pair of sockets.

What the simulator raises is the affair of one episode. When its process ends or is silent, nothing is known
about any episode, so the run ends with what the process said last.
"""

import os
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from validate.closed_loop.processes import Process
from validate.closed_loop.records import ClosedLoopError
from validate.closed_loop.simulators import Observation, Outcome

ROOT = Path(__file__).resolve().parents[2]
WORKER = "validate.closed_loop.simulators.worker"
MINUTES = 10
"""For one answer; LIBERO takes up to 10 s to make a task."""


class SimulatorFault(Exception):
    """What was raised in a simulator that acts."""


class SimulatorProcess:
    """One process, for one simulator after another."""

    def __init__(self, python: Path, module: str) -> None:
        """Errors: ClosedLoopError."""
        self._name = f"simulator {module}"
        self._opened: tuple[str, str] | None = None
        self._connection, theirs = Pipe()
        command = (str(python), "-m", WORKER, str(theirs.fileno()), module)
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PYTHONPATH": path}
        try:
            self._process = Process(command, pass_fds=(theirs.fileno(),), env=environment)
        except OSError as error:
            self._connection.close()
            raise ClosedLoopError(
                f"{self._name}: {python} cannot be run ({error}); make the simulator's environment "
                "(docs/closed-loop.md), or name its Python with --simulator"
            ) from None
        finally:
            theirs.close()

    def versions(self) -> dict[str, str]:
        """Of the packages that decide what is seen. Errors: ClosedLoopError."""
        return self._must("versions")

    def prompts(self, suite: str) -> dict[str, str]:
        """Of every task. Errors: ClosedLoopError."""
        return self._must("prompts", suite)

    def open(self, suite: str, task: str) -> None:
        """Makes the simulator of a task, unless it is there. Errors: ClosedLoopError."""
        if self._opened != (suite, task):
            self._opened = None
            self._must("open", suite, task)
            self._opened = (suite, task)

    def reset(self, scene: int) -> Observation:
        """Errors, of all that follow: SimulatorFault, ClosedLoopError."""
        return self._try("reset", scene)

    def execute(self, actions: NDArray[np.float32]) -> Outcome:
        return self._try("execute", actions)

    def expert(self) -> NDArray[np.float32]:
        return self._try("expert")

    def kill(self) -> None:
        """From another thread than the one that asks, which gets a ClosedLoopError."""
        self._process.kill()

    def close(self) -> None:
        self._connection.close()
        self._process.close()

    def _must(self, method: str, *arguments: object) -> Any:
        value, fault = self._ask(method, arguments)
        if fault is not None:
            what = " ".join(map(str, (method, *arguments)))
            raise ClosedLoopError(f"{self._name}: {what}: {': '.join(fault)}; mend its environment")
        return value

    def _try(self, method: str, *arguments: object) -> Any:
        value, fault = self._ask(method, arguments)
        if fault is not None:
            if fault[0] == NotImplementedError.__name__:
                raise ClosedLoopError(f"{self._name}: it has no {method}; leave that policy out")
            self._opened = None  # who knows what state it is in
            raise SimulatorFault(f"{method}: {': '.join(fault)}")
        return value

    def _ask(self, method: str, arguments: tuple[object, ...]) -> tuple[Any, tuple[str, str] | None]:
        try:
            self._connection.send((method, arguments))
            if not self._connection.poll(MINUTES * 60):
                raise ClosedLoopError(
                    f"{self._name}: no answer to {method} after {MINUTES} minutes; run again to go on"
                )
            return self._connection.recv()
        except (EOFError, ConnectionError):
            raise ClosedLoopError(
                f"{self._name}: its process ended at {method}: {self._process.last_words()}; run again to "
                "go on"
            ) from None
