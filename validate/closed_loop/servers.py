"""Servers that a run starts for itself: `pi05 serve` of a bundle, and the reference behind the same protocol.

    python -m validate.closed_loop.servers PID bundle BUNDLE --target T [as `pi05 serve`]
    python -m validate.closed_loop.servers PID reference [PART=KEY ...]

The first argument of both is the process that started them, with which the kernel ends them. One server takes
one robot at a time, so each simulator has a set of its own, on free ports of the loopback.
"""

import ctypes
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.stage import run_stage
from pi05_runtime.errors import EngineError, NetworkError
from validate.closed_loop.policies import Client
from validate.closed_loop.processes import Process

MODULE = "validate.closed_loop.servers"
DEADLINE_MS = 600_000
"""Nothing moves while a policy of a simulator decides."""
LISTENS = re.compile(r"ws://\S+:\d+")
_PR_SET_PDEATHSIG = 1


class Server:
    """A process, and what it decides."""

    def __init__(self, name: str, arguments: Sequence[str]) -> None:
        """Errors: EngineError with what the process said last."""
        command = (sys.executable, "-m", MODULE, str(os.getpid()), *arguments)
        self._process = Process(command, stdout=subprocess.PIPE, text=True)
        try:
            assert self._process.popen.stdout is not None
            line = self._process.popen.stdout.readline()
            if (listens := LISTENS.search(line)) is None:
                raise EngineError(f"policy {name!r} cannot be served: {self._process.last_words()}")
            self._client = Client(listens[0])
        except BaseException:
            self._process.close()
            raise
        self._name, self.noise_shape = name, self._client.noise_shape

    def infer(self, observation: Mapping[str, Any]) -> NDArray[np.float32]:
        """Errors: Refused, EngineError if the process has ended."""
        try:
            return self._client.infer(observation)
        except NetworkError:
            raise EngineError(
                f"policy {self._name!r}: its server ended: {self._process.last_words()}; run again to go on"
            ) from None

    def close(self) -> None:
        self._client.close()
        self._process.close()


def serve_bundle(arguments: list[str]) -> None:
    from pi05_runtime import cli

    sys.argv = ["pi05", "serve", *arguments, "--port", "0", "--deadline-ms", str(DEADLINE_MS)]
    cli.main()


def serve_reference(maps: list[str]) -> None:
    import torch

    from export.params import load_params
    from pi05_runtime.serve.keys import Keys
    from pi05_runtime.serve.server import PolicyServer, serve_until_told
    from validate.closed_loop.reference import ReferencePolicy

    torch.set_num_threads(1)  # sums depend on how many there are, and other simulators need the other cores
    logging.getLogger("websockets").setLevel(logging.CRITICAL)
    policy: Any = ReferencePolicy(load_params())
    server = PolicyServer(policy, Keys(policy.manifest.interface, maps), DEADLINE_MS)
    said = "reference: ws://127.0.0.1:{}".format
    serve_until_told(server, "127.0.0.1", 0, lambda port: print(said(port), flush=True))


def main(parent: str, kind: str, *arguments: str) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        os._exit(1)
    {"bundle": serve_bundle, "reference": serve_reference}[kind](list(arguments))


if __name__ == "__main__":
    run_stage(main)
