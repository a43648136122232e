"""The process of a simulator: answers one request after another, until whoever started it is gone.

    python -m validate.closed_loop.simulators.worker DESCRIPTOR MODULE

A request is (method, arguments), an answer is (value, None) or (None, (kind of exception, text)). MODULE is
one of this package, or the full name of another."""

import importlib
import os
import sys
import traceback
from importlib.metadata import version
from multiprocessing.connection import Connection
from typing import Any


class Worker:
    def __init__(self, name: str) -> None:
        self._name = name if "." in name else f"{__package__}.{name}"
        self._simulator: Any = None

    def answer(self, method: str, arguments: tuple[Any, ...]) -> object:
        module = importlib.import_module(self._name)
        match method:
            case "versions":
                return {package: version(package) for package in module.PACKAGES}
            case "prompts":
                return module.Simulator.prompts(*arguments)
            case "open":
                if self._simulator is not None:
                    self._simulator.close()
                self._simulator = module.Simulator(*arguments)
                return None
            case _:
                return getattr(self._simulator, method)(*arguments)


def main(descriptor: str, name: str) -> None:
    os.dup2(2, 1)  # what libraries print is for the log
    connection, worker = Connection(int(descriptor)), Worker(name)
    while True:
        method, arguments = connection.recv()
        try:
            answer = worker.answer(method, arguments), None
        except Exception as error:
            traceback.print_exc()
            answer = None, (type(error).__name__, str(error))
        connection.send(answer)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (EOFError, ConnectionError):
        os._exit(0)  # GL drivers may crash when they are torn down
