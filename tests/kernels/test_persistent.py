"""SM90's persistent product. Nothing interprets Gluon: here it is compiled and read, and it runs where there
is such a GPU, against fp32 PyTorch."""

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from triton.experimental.gluon.language.nvidia.hopper import tma

from export.engine.plan.builder import Builder, Call, WeightValue
from export.engine.plan.products import added, ceil, matmul
from export.engine.plan.source import Linear, Source
from export.kernels.compile import Binary, Chip, Refused, Specialization, compile_kernels
from pi05_runtime.engines.driver import CudaDevice
from tests.kernels.operands import FP8, bf16, codes, near

SM90 = Chip(90)
if not hasattr(tma, "async_load"):
    pytest.skip("Triton here is older than that of artifacts/locks", allow_module_level=True)


@dataclass(frozen=True)
class Case:
    """A product of [rows, k] and [n, k]; of the rows, `length` count."""

    rows: int
    n: int
    k: int
    epilogue: str
    fp8: bool = True
    length: int | None = None


CASES = [
    Case(532, 1024, 2048, "geglu"),
    Case(300, 256, 512, "geglu", fp8=False),
    Case(700, 512, 1152, "parts", length=300),
    Case(530, 256, 640, "parts", fp8=False, length=530),
    Case(512, 384, 1152, "gelu"),
    Case(97, 128, 256, "linear"),
]


class Layer:
    """A Source of one product."""

    def __init__(self, case: Case) -> None:
        self.weight = (codes if case.fp8 else bf16)(case.n, case.k).cpu()
        self.bias = bf16(case.n).cpu() if case.epilogue in ("gelu", "linear") else None
        self.codes = case.fp8

    def __contains__(self, name: str) -> bool:
        return self.bias is not None and name == "product.bias"

    def tensor(self, name: str) -> Tensor | None:
        return self.bias

    def linear(self, name: str) -> Linear:
        return Linear(self.weight, 0.5, 1.0 if self.codes else None)


def described(case: Case, layer: Layer) -> tuple[Builder, Call]:
    """The launch as the pipeline has it, its persistent variants alone."""
    b, source = Builder({}, SM90), cast(Source, layer)
    dtype = FP8 if case.fp8 else torch.bfloat16
    x, out = b.result(dtype, case.rows, case.k), b.result(dtype, case.rows, case.n)
    length = b.port("length", torch.int32) if case.length else None
    if case.epilogue == "parts":
        added(b, source, "product", x, case.rows, length=length)
    else:
        following = Linear(layer.weight, 1.0, 1 / 8) if coded(case) else None
        out = out if coded(case) or not case.fp8 else b.result(torch.bfloat16, case.rows, case.n)
        matmul(
            b, source, "product", x, case.rows, out=out, following=following, epilogue=case.epilogue,
            length=length,
        )  # fmt: skip
    return b, b.calls[0]


def coded(case: Case) -> bool:
    return case.fp8 and case.epilogue != "linear"


@cache
def compiled(case: Case) -> dict[Specialization, Binary | Refused]:
    _, call = described(case, Layer(case))
    return compile_kernels(SM90, [v.wanted for v in call.variants if v.wanted.kernel == "persistent"])


@pytest.mark.parametrize("case", CASES)
def test_every_tile_compiles_to_full_rate_instructions(case: Case) -> None:
    found = compiled(case)
    assert found
    for wanted, binary in found.items():
        assert isinstance(binary, Binary), (wanted.constants, binary)
        assert set(binary.tensor) == {"QGMMA" if case.fp8 else "HGMMA"} and binary.threads == 384


def expected(case: Case, layer: Layer, a: Tensor, splits: int) -> Tensor:
    """fp32, as it is before the last rounding; parts apart."""
    depth = 128 if case.fp8 else 64
    share = ceil(ceil(case.k, depth), splits) * depth
    pieces = zip(a.float().split(share, 1), layer.weight.cuda().float().split(share, 1), strict=True)
    sums = torch.stack([x @ y.T * 0.5 for x, y in pieces])
    if case.epilogue == "parts":
        return sums[:, : case.length]
    y = sums.sum(0)
    if case.epilogue == "geglu":
        gate, up = y.split(case.n // 2, 1)
        return F.gelu(gate, approximate="tanh") * up
    assert layer.bias is not None
    y += layer.bias.cuda().float()
    return F.gelu(y, approximate="tanh") if case.epilogue == "gelu" else y


@pytest.mark.parametrize("case", CASES)
def test_product(case: Case) -> None:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("runs on SM90 alone")
    layer = Layer(case)
    b, call = described(case, layer)
    a = (codes if case.fp8 else bf16)(case.rows, case.k).cuda()
    length = torch.tensor([case.length or 0], dtype=torch.int32, device="cuda")
    device = CudaDevice()
    for candidate in call.variants:
        wanted = candidate.wanted
        if wanted.kernel != "persistent":
            continue
        binary, tile = compiled(case)[wanted], dict(wanted.constants)
        assert isinstance(binary, Binary)
        want = expected(case, layer, a, int(tile["SPLITS"] or 1))
        scale = want.abs().max().item() / 448 if coded(case) and case.epilogue != "parts" else 1.0
        dtype = FP8 if scale != 1.0 else torch.bfloat16
        shape = [*want.shape[:-2], case.rows, want.shape[-1]]
        out = torch.full(shape, float("nan"), device="cuda").to(dtype)
        memory: dict[str, Any] = {"a": a, "out": out, "length": length, "inverse_scale": 1 / scale}
        names = [
            n for n, kind in wanted.signature if kind != "constexpr" and not kind.startswith("tensordesc")
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
        device.launch_kernel(kernel, candidate.grid, binary.threads, binary.shared, arguments, 0)
        device.synchronize(0)
        near(out[..., : want.shape[-2], :].float() * scale, want, 4e-2 if dtype == FP8 else 5e-3)
        height = int(tile["BM"] or 0) + int(tile["MORE"] or 0)
        beyond = out[..., ceil(case.length or case.rows, height) * height :, :]
        assert (beyond.float() == 0).all(), "rows of no token are zeros"
