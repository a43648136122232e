"""SM90's own attention of the prefix and of vision. Nothing interprets Gluon: here it is compiled and read,
and it runs where there is such a GPU, against fp32 PyTorch."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from triton.experimental.gluon.language.nvidia.hopper import tma

from export.engine.plan.builder import Builder, Call
from export.engine.plan.components import STRIDES
from export.engine.plan.launches import attention
from export.engine.plan.source import Linear
from export.kernels.compile import Binary, Chip, Refused, Specialization, compile_kernels
from tests.kernels.launching import need_sm90, prepared, run
from tests.kernels.operands import FP8, bf16, near

SM90 = Chip(90)
if not hasattr(tma, "async_load"):
    pytest.skip("Triton here is older than that of artifacts/locks", allow_module_level=True)
CODE = 1 / 64
"""What one FP8 code is worth."""
PREFIX = 256
HEADS, HEAD, TOKENS = 16, 72, 256


def following(dtype: torch.dtype) -> Linear:
    return Linear(torch.empty(1, 1, dtype=dtype), 1.0, CODE if dtype == FP8 else None)


def prefix(dtype: torch.dtype, tokens: int) -> tuple[Builder, Call]:
    """Eight heads that share keys, as the prefix has them."""
    b, shape = Builder({}, SM90), (8 * tokens, PREFIX)
    q, k, v = (b.result(torch.bfloat16, *s) for s in (shape, (tokens, PREFIX), (tokens, PREFIX)))
    attention(
        b, "attention", q, k, v, b.result(dtype, *shape), following(dtype), rows=8 * tokens, keys=tokens,
        dim=PREFIX, strides=dict(zip(STRIDES, (PREFIX, 0, 0) * 3, strict=True)),
        length=b.port("length", torch.int32),
    )  # fmt: skip
    return b, b.calls[0]


def vision(dtype: torch.dtype, views: int) -> tuple[Builder, Call]:
    b, width = Builder({}, SM90), HEADS * HEAD
    qkv, out = b.result(torch.bfloat16, views * TOKENS, 3 * width), b.result(dtype, views * TOKENS, width)
    row, batch = 3 * width, TOKENS * 3 * width
    strides = (row, HEAD, batch, row, HEAD, batch, width, HEAD, TOKENS * width)
    attention(
        b, "attention", qkv, qkv.at(width), qkv.at(2 * width), out, following(dtype), rows=TOKENS,
        keys=TOKENS, dim=HEAD, strides=dict(zip(STRIDES, strides, strict=True)), heads=HEADS, batches=views,
    )  # fmt: skip
    return b, b.calls[0]


@cache
def compiled(call: Call) -> dict[Specialization, Binary | Refused]:
    return compile_kernels(SM90, [v.wanted for v in call.variants if v.wanted.kernel != "attention"])


DESCRIBED = {
    (name, dtype): describe(dtype, size)
    for dtype in (torch.bfloat16, FP8)
    for name, describe, size in (("pingpong", prefix, 532), ("resident_attention", vision, 2))
}


@pytest.mark.parametrize(("name", "dtype"), DESCRIBED)
def test_it_compiles_to_full_rate_instructions(name: str, dtype: torch.dtype) -> None:
    _, call = DESCRIBED[name, dtype]
    found = compiled(call)
    assert {wanted.kernel for wanted in found} == {name}
    for wanted, binary in found.items():
        assert isinstance(binary, Binary), (wanted.constants, binary)
        assert set(binary.tensor) == {"HGMMA"}


def results(name: str, dtype: torch.dtype, b: Builder, call: Call, memory: dict[str, Tensor]) -> list[Tensor]:
    """fp32, of each variant, whose binary does not depend on how many rows there are."""
    found = []
    for candidate in call.variants:
        if candidate.wanted.kernel == name:
            binary = compiled(DESCRIBED[name, dtype][1])[candidate.wanted]
            assert isinstance(binary, Binary)
            memory["out"].fill_(float("nan"))
            run(b, call, candidate, binary, memory)
            found.append(memory["out"].float() * (CODE if dtype == FP8 else 1))
    assert found
    return found


def tolerance(dtype: torch.dtype) -> float:
    return 4e-2 if dtype == FP8 else 5e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, FP8])
@pytest.mark.parametrize(
    ("tokens", "length"), [(532, 532), (532, 513), (532, 1), (532, 64), (532, 65), (257, 200), (968, 968)]
)
def test_heads_that_share_keys_see_the_length_alone(dtype: torch.dtype, tokens: int, length: int) -> None:
    need_sm90()
    b, call = prefix(dtype, tokens)
    q, k, v = bf16(8 * tokens, PREFIX).cuda(), bf16(tokens, PREFIX).cuda(), bf16(tokens, PREFIX).cuda()
    k[length:], v[length:] = 1e4, 1e4
    n, out = torch.tensor([length], dtype=torch.int32).cuda(), torch.empty_like(q).to(dtype)
    scores = q.float() @ k[:length].float().T * PREFIX**-0.5
    expected = scores.softmax(1) @ v[:length].float()
    for found in results("pingpong", dtype, b, call, {"q": q, "k": k, "v": v, "out": out, "length": n}):
        near(found, expected, tolerance(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, FP8])
def test_heads_that_share_keys_are_the_same_beside_other_work(dtype: torch.dtype) -> None:
    """Launch behind launch, each admitting the next at once."""
    need_sm90()
    tokens, side, launches = 532, torch.cuda.Stream(), 64
    b, call = prefix(dtype, tokens)
    q, k, v = bf16(8 * tokens, PREFIX).cuda(), bf16(tokens, PREFIX).cuda(), bf16(tokens, PREFIX).cuda()
    memory = {"q": q, "k": k, "v": v, "length": torch.tensor([tokens], dtype=torch.int32).cuda()}
    busy = bf16(4096, 4096).cuda()
    (candidate,) = (c for c in call.variants if c.wanted.kernel == "pingpong")
    binary = compiled(DESCRIBED["pingpong", dtype][1])[candidate.wanted]
    assert isinstance(binary, Binary)
    outs = [torch.empty_like(q).to(dtype) for _ in range(launches)]
    ready = [prepared(b, call, candidate, binary, memory | {"out": out}) for out in outs]
    for _ in range(100):
        with torch.cuda.stream(side):
            for _ in range(8):
                busy @ busy
        for launch in ready:
            launch()
        torch.cuda.synchronize()
        assert all(torch.equal(out.view(torch.uint8), outs[0].view(torch.uint8)) for out in outs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, FP8])
@pytest.mark.parametrize("views", [1, 2, 3])
def test_heads_of_a_fused_matrix(dtype: torch.dtype, views: int) -> None:
    need_sm90()
    b, call = vision(dtype, views)
    width = HEADS * HEAD
    qkv = bf16(views * TOKENS, 3 * width).cuda()
    out = torch.empty(views * TOKENS, width, device="cuda").to(dtype)
    q, k, v = qkv.float().reshape(views, TOKENS, 3, HEADS, HEAD).permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(views * TOKENS, width)
    memory = {"q": qkv, "k": qkv[:, width:], "v": qkv[:, 2 * width :], "out": out}
    for found in results("resident_attention", dtype, b, call, memory):
        near(found, expected, tolerance(dtype))
