"""A Device whose kernels are interpreted: a whole plan runs on a CPU, launch by launch."""

import ctypes
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch
from triton.experimental.gluon._runtime import GluonJITFunction

from export.engine.plan.builder import TYPES
from export.kernels.compile import KERNELS, Binary, Refused, Specialization
from pi05_runtime.engines.driver import Bytes
from tests.runtime.host_device import HostDevice

ELEMENTS = {kind: dtype for dtype, kind in TYPES.items()} | {"u8": torch.uint8}


def stand_ins(wanted: Sequence[Specialization]) -> dict[Specialization, Binary | Refused]:
    """In place of machine code, the number of what is to be interpreted, which Gluon's kernels cannot be."""
    return {
        s: Refused("not interpreted")
        if isinstance(_kernel(s), GluonJITFunction)
        else Binary(str(i).encode(), s.kernel, 0, s.warps * 32, 1, 0, {}, True)
        for i, s in enumerate(wanted)
    }


def _kernel(wanted: Specialization) -> Any:
    return getattr(import_module(f"export.kernels.{KERNELS[wanted.kernel]}"), wanted.kernel)


class InterpretingDevice(HostDevice):
    """Runs the `wanted` kernels whose numbers it is given as images."""

    def __init__(self, wanted: Sequence[Specialization]) -> None:
        super().__init__()
        self.wanted = wanted
        self.launched: list[str] = []

    def load_module(self, image: Bytes) -> int:
        module = self._handle([])
        self.images = {**getattr(self, "images", {}), module: int(image.tobytes().rstrip(b"\0"))}
        return module

    def unload_module(self, module: int) -> None:
        del self.handles[module]

    def find_kernel(self, module: int, entry: str, shared: int) -> int:
        number = self.images[module]
        assert self.wanted[number].kernel == entry
        return number

    def launch_kernel(
        self, kernel: int, grid: Any, threads: int, shared: int, arguments: Any, stream: int, early: bool
    ) -> None:
        assert threads == self.wanted[kernel].warps * 32
        self.enqueue(lambda: self._interpret(self.wanted[kernel], grid, arguments))

    def _interpret(self, wanted: Specialization, grid: Any, arguments: Any) -> None:
        values, types = arguments
        operands = [(n, kind) for n, kind in wanted.signature if kind != "constexpr"]
        assert len(values) == len(types) == len(operands) + 2 and values[-2:] == (0, 0)
        given: Mapping[str, Any] = {
            name: pointer(value, kind) if kind[0] == "*" else value
            for (name, kind), value in zip(operands, values[:-2], strict=True)
        }
        self.launched.append(wanted.kernel)
        _kernel(wanted)[grid](**given, **dict(wanted.constants))


def pointer(address: int, kind: str) -> torch.Tensor:
    """Something at an address, whose address is all that a kernel asks for."""
    assert address % 16 == 0, "kernels are compiled for aligned operands"
    memory = np.frombuffer((ctypes.c_uint8 * 16).from_address(address), np.uint8)
    return torch.from_numpy(memory).view(ELEMENTS[kind[1:]])
