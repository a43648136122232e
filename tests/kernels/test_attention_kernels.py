"""Attention of vision, of the prefix and of the action chunk, against PyTorch's."""

import math
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from export.kernels.attention import attention
from export.kernels.decode_attention import decode_attention, merge
from export.kernels.order import ASKED, LINE
from tests.kernels.operands import bf16, codes, near

LOG2_E = math.log2(math.e)
NAN = float("nan")


@pytest.mark.parametrize(("dim", "main", "rest"), [(72, 64, 16), (40, 32, 16), (32, 32, 0)])
@pytest.mark.parametrize("tokens", [16, 40])
def test_heads_of_a_fused_matrix(dim: int, main: int, rest: int, tokens: int) -> None:
    heads, views = 3, 2
    width, row = heads * dim, 3 * heads * dim
    qkv, out = bf16(views * tokens, row), torch.empty(views * tokens, width).bfloat16()
    attention[(-(-tokens // 16), heads * views)](
        qkv, qkv[:, width:], qkv[:, 2 * width :], out, None, dim**-0.5 * LOG2_E, 1.0, tokens, tokens, heads,
        row, dim, tokens * row, row, dim, tokens * row, width, dim, tokens * width, dim, main, rest, 16, 32,
    )  # fmt: skip
    q, k, v = qkv.float().reshape(views, tokens, 3, heads, dim).permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(views * tokens, width)
    near(out, expected, tolerance=5e-3)


@pytest.mark.parametrize("length", [1, 20, 64, 70])
def test_heads_that_share_keys_see_the_length_alone(length: int) -> None:
    tokens, heads, dim = 70, 8, 16
    q, k, v = bf16(tokens * heads, dim), bf16(tokens, dim), bf16(tokens, dim)
    k[length:], v[length:] = NAN, NAN
    out, n = torch.empty(tokens * heads, dim).bfloat16(), torch.tensor([length], dtype=torch.int32)
    attention[(-(-tokens * heads // 64), 1)](
        q, k, v, out, n, dim**-0.5 * LOG2_E, 1.0, tokens * heads, tokens, 1,
        dim, 0, 0, dim, 0, 0, dim, 0, 0, dim, dim, 0, 64, 32,
    )  # fmt: skip
    expected = F.scaled_dot_product_attention(*(x.float()[None] for x in (q, k[:length], v[:length])))[0]
    near(out, expected, tolerance=5e-3)


@pytest.mark.parametrize("horizon", [5, 10, 16, 50])
@pytest.mark.parametrize("length", [1, 31, 257, 300])
@pytest.mark.parametrize("tile", [32, 128])
def test_a_chunk_over_the_cache_and_itself(horizon: int, length: int, tile: int) -> None:
    heads, dim, prefix, height = 2, 16, 300, max(16, 1 << (horizon - 1).bit_length())
    cached = -(-prefix // tile)
    splits = cached + -(-horizon // tile)
    q, k, v = bf16(horizon, heads, dim), bf16(prefix, dim), bf16(prefix, dim)
    own_k, own_v = bf16(horizon, dim), bf16(horizon, dim)
    k[length:], v[length:] = NAN, NAN
    parts = torch.full((heads, splits, horizon, dim), NAN).bfloat16()
    peaks, totals = torch.full((2, heads, splits, horizon), NAN)
    n, out = torch.tensor([length], dtype=torch.int32), torch.empty(horizon, heads, dim).bfloat16()
    keys, values = torch.cat([k[:length], own_k]).float(), torch.cat([v[:length], own_v]).float()
    expected = F.scaled_dot_product_attention(q.float().transpose(0, 1), keys[None], values[None])
    decode_attention[(heads, splits)](
        q, k, v, own_k, own_v, n, parts, peaks, totals, None, horizon, dim**-0.5 * LOG2_E,
        heads, dim, cached, splits, height, tile, 0,
    )  # fmt: skip
    width = 1 << (splits - 1).bit_length()
    merge[(horizon, heads)](parts, peaks, totals, out, horizon, 1.0, heads, dim, splits, width)
    near(out, expected.transpose(0, 1), tolerance=5e-3)


@pytest.mark.parametrize("make", [bf16, codes])
def test_weights_of_a_launch_to_come_are_asked_for_once(make: Callable[..., Tensor]) -> None:
    # On a GPU, kernels are not interpreted, and importing it would change that.
    interpreter = sys.modules.get("tests.kernels.interpreter") or pytest.skip("not interpreted")
    heads, dim, horizon, tile, prefix = 2, 16, 5, 32, 70
    cached = -(-prefix // tile)
    splits = cached + 1
    q, k, v = bf16(horizon, heads, dim), bf16(prefix, dim), bf16(prefix, dim)
    parts = torch.empty(heads, splits, horizon, dim).bfloat16()
    peaks, totals = torch.empty(2, heads, splits, horizon)
    weights = make((heads * cached + 1) * ASKED.value // make(1, 1).itemsize, 1)
    interpreter.ASKED.clear()
    decode_attention[(heads, splits)](
        q, k, v, bf16(horizon, dim), bf16(horizon, dim), torch.tensor([prefix], dtype=torch.int32),
        parts, peaks, totals, weights, horizon, 1.0, heads, dim, cached, splits, 16, tile, weights.nbytes,
    )  # fmt: skip
    lines = range(weights.data_ptr(), weights.data_ptr() + weights.nbytes, LINE.value)
    assert sorted(interpreter.ASKED) == list(lines)
