"""Launches one variant of a described launch on the GPU that is here, as the runtime does."""

import ctypes
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from export.engine.plan.builder import Builder, Call, Candidate, WeightValue
from export.kernels.compile import Binary
from pi05_runtime.engines.driver import CudaDevice


def need_sm90() -> None:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("runs on SM90 alone")


def run(b: Builder, call: Call, candidate: Candidate, binary: Binary, memory: Mapping[str, Any]) -> None:
    """memory: operand's name -> tensor, or number in place of the launch's own."""
    prepared(b, call, candidate, binary, memory)()
    torch.cuda.synchronize()


def prepared(
    b: Builder, call: Call, candidate: Candidate, binary: Binary, memory: Mapping[str, Any]
) -> Callable[[], None]:
    """What `run` does, as often as it is called, but for the waiting."""
    device = CudaDevice()
    names = [
        n
        for n, kind in candidate.wanted.signature
        if kind != "constexpr" and not kind.startswith("tensordesc")
    ]
    weights = {n: w.cuda() for n, w in b.weights.items()}
    given = [
        memory.get(name, weights[value.name] if isinstance(value, WeightValue) else value)
        for name, value in zip(names, call.operands, strict=True)
    ]
    values, types = [], []
    for tiled in candidate.tiled:
        address = given[tiled.argument].data_ptr()
        values += [device.describe_tiles(address, tiled), tiled.rows, tiled.columns, tiled.columns, 1]
        types += [None, ctypes.c_int32, ctypes.c_int32, ctypes.c_int64, ctypes.c_int64]
    for value in given:
        values.append(value.data_ptr() if isinstance(value, Tensor) else value)
        number = ctypes.c_int32 if isinstance(value, int) else ctypes.c_float
        types.append(ctypes.c_void_p if isinstance(value, Tensor) else number)
    values, types = [*values, 0, 0], [*types, ctypes.c_void_p, ctypes.c_void_p]
    module = device.load_module(torch.frombuffer(bytearray(binary.code), dtype=torch.uint8).numpy())
    kernel = device.find_kernel(module, binary.entry, binary.shared)
    arguments = (tuple(values), tuple(types))

    def launch() -> None:
        assert given, "whose addresses the arguments are"
        device.launch_kernel(kernel, candidate.grid, binary.threads, binary.shared, arguments, 0, True)

    return launch
