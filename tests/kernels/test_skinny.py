"""The product of an action chunk's few rows, against fp32 PyTorch."""

import pytest
import torch
import torch.nn.functional as F

from export.engine.plan.source import interleave_heads, interleave_pair
from export.engine.plan.tiles import skinny_tiles
from export.kernels.epilogue import PAIRED
from export.kernels.skinny import skinny
from tests.kernels.operands import FP8, bf16, codes, fp32, near, rope_tables, rotate

OPTIONAL = ("bias", "residual", "keys", "values", "cos", "sin", "length", "dt")


def run(a, w, out, **given):
    """The kernel with every choice of tiles that its shape has; all must agree."""
    rows, (n, k) = len(a), w.shape
    constants = {"N": n, "K": k, "HEADS": 0, "D": 0, "EPILOGUE": "linear", "SPLITS": 1}
    constants |= {name: given.pop(name) for name in constants.keys() & given.keys()}
    scales = {"scale": 1.0, "inverse_scale": 1.0}
    least = 2 * PAIRED.value if constants["EPILOGUE"] in ("geglu", "rope") else 1
    choices = list(skinny_tiles(n, k // constants["SPLITS"], constants["D"], least))
    assert choices
    for one in choices:
        grid = (-(-n // one["BN"]), -(-rows // one["BM"]), constants["SPLITS"])
        operands = dict.fromkeys(OPTIONAL) | scales | given
        skinny[grid](a, w, out, M=rows, **operands, **constants, **dict(one.constants), num_warps=one.warps)
        yield out


@pytest.mark.parametrize("rows", [5, 10, 16, 50])
@pytest.mark.parametrize(("n", "k"), [(40, 96), (32, 128), (128, 32)])
def test_bias(rows: int, n: int, k: int) -> None:
    a, w, bias = codes(rows, k), codes(n, k), bf16(n)
    for found in run(a, w, torch.empty(rows, n).bfloat16(), bias=bias, scale=0.3):
        near(found, a.float() @ w.float().T * 0.3 + bias.float())


@pytest.mark.parametrize("rows", [10, 50])
@pytest.mark.parametrize("splits", [1, 2, 4])
def test_parts_of_a_sum(rows: int, splits: int) -> None:
    a, w = codes(rows, 256), codes(40, 256)
    parts = zip(a.float().chunk(splits, 1), w.float().chunk(splits, 1), strict=True)
    expected = torch.stack([x @ y.T * 0.3 for x, y in parts])
    out = torch.full((splits, rows, 40), torch.nan).bfloat16()
    for found in run(a, w, out, scale=0.3, EPILOGUE="parts", SPLITS=splits):
        near(found, expected)


@pytest.mark.parametrize("rows", [10, 50])
def test_geglu_in_codes(rows: int) -> None:
    x, w = codes(rows, 128), codes(128, 128)
    gate, up = w.float().split(64)
    expected = F.gelu(x.float() @ gate.T * 0.01, approximate="tanh") * (x.float() @ up.T * 0.01)
    scale = expected.abs().max().item() / 448
    given = {"scale": 0.01, "inverse_scale": 1 / scale, "EPILOGUE": "geglu"}
    for found in run(x, interleave_pair(w), torch.empty(rows, 64).to(FP8), **given):
        near(found.float() * scale, expected, tolerance=4e-2)


@pytest.mark.parametrize("heads", [3, 8])
def test_rope_begins_behind_the_prefix(heads: int) -> None:
    dim, start, rows = 16, 21, 10
    x, w = bf16(rows, 64), bf16((heads + 2) * dim, 64)
    cos, sin = rope_tables(start + rows, dim)
    q, k, v = (torch.empty(rows, n * dim).bfloat16() for n in (heads, 1, 1))
    given = {
        "keys": k,
        "values": v,
        "cos": cos,
        "sin": sin,
        "length": torch.tensor([start], dtype=torch.int32),
    }
    given |= {"EPILOGUE": "rope", "HEADS": heads, "D": dim}
    y = x.float() @ w.float().T
    queries, keys, values = y.split([heads * dim, dim, dim], 1)
    c, s = cos[start:], sin[start:]
    for _ in run(x, interleave_heads(w, dim), q, **given):
        near(k, rotate(keys, c, s))
        near(v, values)
        near(q, rotate(queries.unflatten(1, (heads, dim)), c[:, None], s[:, None]).flatten(1))


def test_euler_step_is_fp32() -> None:
    h, w, bias, x = fp32(10, 64), fp32(32, 64), fp32(32), fp32(10, 32)
    given = {"bias": bias, "residual": x, "dt": torch.tensor([-0.1]), "EPILOGUE": "euler"}
    for found in run(h, w, torch.empty(10, 32), **given):
        near(found, x - 0.1 * (h @ w.T + bias), tolerance=1e-6)
