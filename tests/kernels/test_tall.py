"""SM90's own product and attention of an action chunk. Nothing interprets Gluon: here they are compiled and
read, and they run where there is such a GPU, against fp32 PyTorch."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from triton.experimental.gluon.language.nvidia.hopper import tma

from export.engine.plan.builder import Builder, Call
from export.engine.plan.launches import decode_attention
from export.engine.plan.products import Heads, skinny, skinny_added
from export.engine.plan.source import Linear, Source
from export.kernels.compile import Binary, Chip, Refused, Specialization, compile_kernels
from tests.kernels.launching import need_sm90, run
from tests.kernels.operands import FP8, bf16, codes, near, rope_tables, rotate

SM90 = Chip(90)
if not hasattr(tma, "async_load"):
    pytest.skip("Triton here is older than that of artifacts/locks", allow_module_level=True)
QUERIES, DIM, PREFIX = 8, 256, 300
SOON = 8 << 20
LENGTH = 277
"""Of the prefix, in tokens: the first of the chunk stands there."""


@dataclass(frozen=True)
class Case:
    epilogue: str
    n: int
    k: int
    fp8: bool
    rows: int = 10

    @property
    def dtype(self) -> torch.dtype:
        return FP8 if self.fp8 else torch.bfloat16


CASES = [
    Case("parts", 1024, 2048, fp8=True),
    Case("parts", 256, 1024, fp8=False, rows=5),
    Case("parts", 256, 512, fp8=True, rows=50),
    Case("geglu", 512, 1024, fp8=True),
    Case("geglu", 256, 512, fp8=False, rows=17),
    Case("rope", 2560, 1024, fp8=True),
    Case("rope", 2560, 512, fp8=False, rows=50),
]


class Layer:
    """A Source of one product."""

    def __init__(self, case: Case) -> None:
        weight = (codes if case.fp8 else bf16)(case.n, case.k).cpu()
        self.layer = Linear(weight, 2.0**-6, 1.0 if case.fp8 else None)

    def __contains__(self, name: str) -> bool:
        return False

    def linear(self, name: str) -> Linear:
        return self.layer


def described(case: Case, layer: Layer) -> tuple[Builder, Call]:
    b, source = Builder({}, SM90), cast(Source, layer)
    x, out = b.result(case.dtype, case.rows, case.k), b.result(case.dtype, case.rows, case.n)
    if case.epilogue == "parts":
        skinny_added(b, source, "product", x, case.rows)
    elif case.epilogue == "geglu":
        following = Linear(layer.layer.weight, 1.0, 1 / 8 if case.fp8 else None)
        skinny(b, source, "product", x, case.rows, out=out, following=following, epilogue="geglu")
    else:
        q, k, v = (b.result(torch.bfloat16, case.rows, size * DIM) for size in (QUERIES, 1, 1))
        tables = (b.port(name, torch.float32) for name in ("cos", "sin"))
        heads = Heads(QUERIES, DIM, q, k, v, *tables)
        skinny(b, source, "product", x, case.rows, heads=heads, length=b.port("length", torch.int32))
    return b, b.calls[0]


def attended(horizon: int) -> tuple[Builder, Call]:
    b = Builder({}, SM90)
    q, k, v = (b.result(torch.bfloat16, horizon, size * DIM) for size in (QUERIES, 1, 1))
    cos, sin, keys, values = (b.port(name, torch.bfloat16) for name in ("cos", "sin", "keys", "values"))
    soon = b.port("soon", FP8)
    decode_attention(
        b, "layer", Heads(QUERIES, DIM, q, k, v, cos, sin), horizon, PREFIX, keys, values,
        b.port("length", torch.int32), Linear(torch.empty(1, 1), 1.0, None), soon, SOON,
    )  # fmt: skip
    return b, b.calls[0]


@cache
def compiled(call: Call) -> dict[Specialization, Binary | Refused]:
    return compile_kernels(SM90, [v.wanted for v in call.variants if v.wanted.kernel.startswith("tall")])


@cache
def product(case: Case) -> tuple[Layer, Builder, Call]:
    layer = Layer(case)
    return layer, *described(case, layer)


@cache
def attention(horizon: int) -> tuple[Builder, Call]:
    return attended(horizon)


@pytest.mark.parametrize("case", CASES)
def test_a_product_compiles_to_full_rate_instructions(case: Case) -> None:
    *_, call = product(case)
    found = compiled(call)
    assert any(isinstance(binary, Binary) for binary in found.values())
    for binary in found.values():
        if isinstance(binary, Binary):
            assert set(binary.tensor) == {"QGMMA" if case.fp8 else "HGMMA"}
        else:
            assert "shared memory" in binary.reason


@pytest.mark.parametrize("horizon", [10, 50])
def test_attention_compiles_to_full_rate_instructions(horizon: int) -> None:
    found = compiled(attention(horizon)[1])
    assert found
    for wanted, binary in found.items():
        assert isinstance(binary, Binary), (wanted.constants, binary)
        assert set(binary.tensor) == {"HGMMA"}


def launched(b: Builder, call: Call, memory: dict[str, Tensor]) -> Iterator[dict[str, int | str | None]]:
    """Constants of each variant that compiles, once it has run."""
    for candidate in call.variants:
        binary = compiled(call).get(candidate.wanted)
        if isinstance(binary, Binary):
            run(b, call, candidate, binary, memory)
            yield dict(candidate.wanted.constants)


def empty(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.full(shape, float("nan"), device="cuda").to(dtype)


@pytest.mark.parametrize("case", CASES)
def test_product(case: Case) -> None:
    need_sm90()
    layer, b, call = product(case)
    a = (codes if case.fp8 else bf16)(case.rows, case.k).cuda()
    y = a.float() @ layer.layer.weight.cuda().float().T * layer.layer.scale
    if case.epilogue == "parts":
        splits = int(dict(call.variants[0].wanted.constants)["SPLITS"] or 1)
        out = empty(torch.bfloat16, splits, case.rows, case.n)
        for _ in launched(b, call, {"a": a, "out": out}):
            near(out.float().sum(0), y, 5e-3)
            out.fill_(float("nan"))
    elif case.epilogue == "geglu":
        gate, up = y.split(case.n // 2, 1)
        want = F.gelu(gate, approximate="tanh") * up
        worth = want.abs().max().item() / 448 if case.fp8 else 1.0
        out = empty(case.dtype, *want.shape)
        for _ in launched(b, call, {"a": a, "out": out, "inverse_scale": 1 / worth}):
            near(out.float() * worth, want, 4e-2 if case.fp8 else 5e-3)
            out.fill_(float("nan"))
    else:
        cos, sin = (table.cuda() for table in rope_tables(LENGTH + case.rows, DIM))
        q, k, v = (empty(torch.bfloat16, case.rows, size * DIM) for size in (QUERIES, 1, 1))
        length = torch.tensor([LENGTH], dtype=torch.int32, device="cuda")
        memory = {"a": a, "out": q, "keys": k, "values": v, "cos": cos, "sin": sin, "length": length}
        queries, keys, values = y.split([QUERIES * DIM, DIM, DIM], 1)
        c, s = cos[LENGTH:], sin[LENGTH:]
        turned = rotate(queries.unflatten(1, (QUERIES, DIM)), c[:, None], s[:, None]).flatten(1)
        for _ in launched(b, call, memory):
            for found, want in ((q, turned), (k, rotate(keys, c, s)), (v, values)):
                near(found, want, 5e-3)
                found.fill_(float("nan"))


@pytest.mark.parametrize("horizon", [10, 50])
@pytest.mark.parametrize("length", [LENGTH, PREFIX, 1])
def test_attention_over_the_cache_and_the_chunk(horizon: int, length: int) -> None:
    need_sm90()
    b, call = attention(horizon)
    q, own_k, own_v = (bf16(horizon, size * DIM).cuda() for size in (QUERIES, 1, 1))
    keys, values = bf16(PREFIX, DIM).cuda(), bf16(PREFIX, DIM).cuda()
    keys[length:], values[length:] = float("nan"), float("nan")
    splits = int(dict(call.variants[0].wanted.constants)["SPLITS"] or 1)
    parts = empty(torch.bfloat16, QUERIES, splits, horizon, DIM)
    peaks, totals = (empty(torch.float32, QUERIES, splits, horizon) for _ in range(2))
    memory = {"q": q, "keys": keys, "values": values, "own_keys": own_k, "own_values": own_v}
    memory |= {"parts": parts, "peaks": peaks, "totals": totals}
    memory |= {"length": torch.tensor([length], dtype=torch.int32, device="cuda")}
    memory |= {"soon": torch.zeros(SOON, dtype=torch.uint8, device="cuda")}
    k, v = torch.cat([keys[:length], own_k]).float(), torch.cat([values[:length], own_v]).float()
    scores = torch.einsum("mhd,kd->hmk", q.float().unflatten(1, (QUERIES, DIM)), k) * DIM**-0.5
    for _ in launched(b, call, memory):
        share = torch.exp2(peaks - peaks.amax(1, keepdim=True))
        found = (parts.float() * share[..., None]).sum(1) / (share * totals).sum(1)[..., None]
        near(found, scores.softmax(-1) @ v, 5e-3)
        for made in (parts, peaks, totals):
            made.fill_(float("nan"))
