"""SM90's persistent product. Nothing interprets Gluon: here it is compiled and read, and it runs where there
is such a GPU, against fp32 PyTorch."""

from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from triton.experimental.gluon.language.nvidia.hopper import tma

from export.engine.plan.builder import Builder, Call
from export.engine.plan.products import Heads, added, ceil, matmul
from export.engine.plan.source import Linear, Source
from export.kernels.compile import Binary, Chip, Refused, Specialization, compile_kernels
from tests.kernels.launching import need_sm90, run
from tests.kernels.operands import FP8, bf16, codes, near, rope_tables, rotate

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
    Case(532, 512, 256, "rope", length=300),
    Case(100, 512, 192, "rope", fp8=False),
]


QUERIES, DIM = 2, 128
"""Of those that rotate."""


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
    elif case.epilogue == "rope":
        to = (b.result(torch.bfloat16, case.rows, heads * DIM) for heads in (QUERIES, 1, 1))
        angles = rope_tables(case.rows, DIM)
        turn = (b.weight(name, lambda x=x: x.cpu()) for name, x in zip(("cos", "sin"), angles, strict=True))
        matmul(b, source, "product", x, case.rows, heads=Heads(QUERIES, DIM, *to, *turn), length=length)
    else:
        following = Linear(layer.weight, 1.0, 1 / 8) if coded(case) else None
        out = out if coded(case) or not case.fp8 else b.result(torch.bfloat16, case.rows, case.n)
        matmul(
            b, source, "product", x, case.rows, out=out, following=following, epilogue=case.epilogue,
            length=length,
        )  # fmt: skip
    return b, b.calls[0]


def coded(case: Case) -> bool:
    return case.fp8 and case.epilogue in ("geglu", "gelu")


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
        assert set(binary.tensor) == {"QGMMA" if case.fp8 else "HGMMA"}
        assert binary.threads == 32 * (wanted.warps + 4), "one that fetches, of a group of four"


def expected(case: Case, layer: Layer, a: Tensor, splits: int) -> Tensor:
    """fp32, as it is before the last rounding; parts apart."""
    depth = 128 if case.fp8 else 64
    share = ceil(ceil(case.k, depth), splits) * depth
    pieces = zip(a.float().split(share, 1), layer.weight.cuda().float().split(share, 1), strict=True)
    sums = torch.stack([x @ y.T * 0.5 for x, y in pieces])
    if case.epilogue == "parts":
        return sums[:, : case.length]
    y = sums.sum(0)
    if case.epilogue == "rope":
        heads, angles = y.unflatten(1, (-1, DIM)), rope_tables(case.rows, DIM)
        c, s = (angle.cuda()[:, None] for angle in angles)
        turned, values = heads.split([QUERIES + 1, 1], 1)
        return torch.cat([rotate(turned, c, s), values], 1).flatten(1)[: case.length]
    if case.epilogue == "geglu":
        gate, up = y.split(case.n // 2, 1)
        return F.gelu(gate, approximate="tanh") * up
    assert layer.bias is not None
    y += layer.bias.cuda().float()
    return F.gelu(y, approximate="tanh") if case.epilogue == "gelu" else y


@pytest.mark.parametrize("case", CASES)
def test_product(case: Case) -> None:
    need_sm90()
    layer = Layer(case)
    b, call = described(case, layer)
    a = (codes if case.fp8 else bf16)(case.rows, case.k).cuda()
    length = torch.tensor([case.length or 0], dtype=torch.int32, device="cuda")
    for candidate in call.variants:
        wanted = candidate.wanted
        if wanted.kernel != "persistent":
            continue
        binary, tile = compiled(case)[wanted], dict(wanted.constants)
        assert isinstance(binary, Binary)
        want = expected(case, layer, a, int(tile["SPLITS"] or 1))
        scale = want.abs().max().item() / 448 if coded(case) else 1.0
        dtype = FP8 if coded(case) else torch.bfloat16
        widths = {"out": want.shape[-1]}
        if case.epilogue == "rope":
            widths = {"out": QUERIES * DIM, "keys": DIM, "values": DIM}
        results = {
            name: torch.full((*want.shape[:-2], case.rows, width), float("nan"), device="cuda").to(dtype)
            for name, width in widths.items()
        }
        memory: dict[str, Any] = {"a": a, "length": length, "inverse_scale": 1 / scale, **results}
        run(b, call, candidate, binary, memory)
        out = torch.cat(list(results.values()), -1)
        near(out[..., : want.shape[-2], :].float() * scale, want, 4e-2 if dtype == FP8 else 5e-3)
        height = int(tile["BM"] or 0) + int(tile["MORE"] or 0)
        beyond = out[..., ceil(case.length or case.rows, height) * height :, :]
        assert (beyond.float() == 0).all(), "rows of no token are zeros"
