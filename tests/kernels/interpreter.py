"""Triton's interpreter, made exact: kernels run on a CPU, with the roundings of the chip.

As it comes, it multiplies the bits of bf16 matrices as if they were integers, and cuts off where a chip
rounds to nearest even. PyTorch's conversions stand in for its own. tests/conftest.py imports this before any
kernel: whether one is interpreted is fixed when it is defined.
"""

import os
from types import SimpleNamespace

os.environ["TRITON_INTERPRET"] = "1"

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.language import extra
from triton.runtime import interpreter

_TORCH = {
    tl.float32: torch.float32,
    tl.bfloat16: torch.bfloat16,
    tl.float16: torch.float16,
    tl.float8e4nv: torch.float8_e4m3fn,
}
_STORED = {1: np.uint8, 2: np.uint16, 4: np.uint32}
_dot = interpreter.InterpreterBuilder.create_dot
ASKED: list[int] = []
"""Addresses that kernels have asked the cache for."""


def _convert(values: Any, source: Any, target: Any, _: Any) -> Any:
    """The bits of `values` in another format."""
    bits = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    given = torch.from_numpy(bits.copy()).view(_TORCH[source])
    if target == tl.float8e4nv:
        given = given.float().clamp(-448, 448)
    result = given.to(_TORCH[target])
    stored = result.view(torch.uint8).numpy().view(_STORED[_TORCH[target].itemsize])
    return stored.reshape(np.shape(values))


def _product(builder: Any, a: Any, b: Any, d: Any, precision: Any, imprecise: Any) -> Any:
    return _dot(builder, _widened(a), _widened(b), d, precision, imprecise)


def _widened(operand: Any) -> Any:
    if operand.dtype.scalar != tl.bfloat16:
        return operand
    bits = _convert(operand.data, tl.bfloat16, tl.float32, None)
    return interpreter.TensorHandle(bits.view(np.float32), tl.float32)


def _asked(builder: Any, assembly: str, constraints: str, values: list[Any], *_: Any) -> Any:
    """Asking a cache for something changes nothing."""
    ASKED.extend(np.asarray(values[0].data).reshape(-1).tolist())
    zeros = interpreter.TensorHandle(np.zeros_like(values[0].data, np.int32), tl.int32)
    return SimpleNamespace(get_result=lambda index: zeros)


interpreter._convert_float = _convert
interpreter.InterpreterBuilder.create_dot = _product
interpreter.InterpreterBuilder.create_inline_asm = _asked
# Interpreted launches follow one another anyway.
extra.cuda.gdc_wait = extra.cuda.gdc_launch_dependents = lambda: None
