"""The product of many rows and its epilogues, against fp32 PyTorch."""

import sys

import pytest
import torch
import torch.nn.functional as F

from export.engine.plan.source import interleave_heads, interleave_pair
from export.kernels.matmul import matmul
from tests.kernels.operands import FP8, bf16, codes, near, rope_tables, rotate

NAN = float("nan")
TILES = {"BM": 32, "BN": 32, "BK": 16, "GROUP": 2, "SPLITS": 1}


def run(a, w, out, M=None, **given):
    """The kernel over its whole grid, with what is not given left out."""
    names = ("bias", "keys", "values", "cos", "sin", "length")
    constants = {"N": len(w), "K": w.shape[1], "HEADS": 0, "D": 0, "EPILOGUE": "linear", **TILES}
    constants |= {name: given.pop(name) for name in (*constants, "LAST", "AHEAD") if name in given}
    constants = {"LAST": constants["BM"], "AHEAD": 0} | constants
    rows = len(a)
    tiles = -(-rows // constants["BM"]) * -(-len(w) // constants["BN"])
    grid = (tiles, constants["SPLITS"])
    operands = dict.fromkeys(names) | {"scale": 1.0, "inverse_scale": 1.0} | given
    matmul[grid](a, w, out, M=rows, **operands, **constants)
    return out


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize(("rows", "n", "k"), [(64, 64, 128), (1, 16, 64), (50, 72, 96), (97, 130, 576)])
def test_product(fp8: bool, rows: int, n: int, k: int) -> None:
    make = codes if fp8 else bf16
    a, w = make(rows, k), make(n, k)
    expected = a.float() @ w.float().T * 0.5
    near(run(a, w, torch.empty(rows, n).bfloat16(), scale=0.5, BK=32), expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 3e-3)])
@pytest.mark.parametrize("splits", [1, 2, 3, 4])
def test_parts_of_a_sum(splits: int, dtype: torch.dtype, tolerance: float) -> None:
    a, w, out = bf16(70, 208), bf16(40, 208), torch.full((splits, 70, 40), NAN, dtype=dtype)
    found = run(a, w, out, SPLITS=splits, EPILOGUE="parts", LAST=16, scale=0.5)
    width = -(-13 // splits) * 16
    for part, x, y in zip(found, a.float().split(width, 1), w.float().split(width, 1), strict=True):
        near(part, x @ y.T * 0.5, tolerance)


@pytest.mark.parametrize("splits", [1, 3])
def test_all_weights_are_asked_for_once(splits: int) -> None:
    # On a GPU, kernels are not interpreted, and importing it would change that.
    interpreter = sys.modules.get("tests.kernels.interpreter") or pytest.skip("not interpreted")
    a, w = bf16(70, 208), bf16(64, 208)
    interpreter.ASKED.clear()
    out = torch.full((splits, 70, 64), NAN)
    near(run(a, w, out, SPLITS=splits, EPILOGUE="parts", LAST=16, AHEAD=1).sum(0), a.float() @ w.float().T)
    lines = [w.data_ptr() + 2 * (row * 208 + column) for row in range(64) for column in range(0, 208, 16)]
    assert sorted(interpreter.ASKED) == lines


def test_bias_and_gelu() -> None:
    a, w, bias = bf16(40, 64), bf16(48, 64), bf16(48)
    product = a.float() @ w.float().T
    near(run(a, w, torch.empty(40, 48).bfloat16(), bias=bias), product + bias.float())
    out = run(a, w, torch.empty(40, 48).bfloat16(), bias=bias, EPILOGUE="gelu")
    near(out, F.gelu(product + bias.float(), approximate="tanh"))


def test_codes_are_rounded_to_nearest_and_saturate() -> None:
    a, w = bf16(32, 64), bf16(32, 64)
    exact = a.float() @ w.float().T
    scale = exact.abs().max().item() / 2 / 448
    out = run(a, w, torch.empty(32, 32).to(FP8), inverse_scale=1 / scale)
    expected = (exact / scale).clamp(-448, 448).to(FP8)
    assert (out.float() != expected.float()).float().mean() < 0.01  # on the edge between two codes
    assert out.float().abs().max() == 448


def test_geglu() -> None:
    a, gate, up = bf16(33, 64), bf16(48, 64), bf16(48, 64)
    w = interleave_pair(torch.cat([gate, up]))
    out = run(a, w, torch.empty(33, 48).bfloat16(), EPILOGUE="geglu")
    near(out, F.gelu(a.float() @ gate.float().T, approximate="tanh") * (a.float() @ up.float().T))


@pytest.mark.parametrize(("heads", "dim", "columns"), [(3, 32, 16), (8, 16, 16), (2, 64, 32), (0, 32, 32)])
@pytest.mark.parametrize("length", [20, 64, 70])
def test_rope_spreads_queries_keys_and_values(heads: int, dim: int, columns: int, length: int) -> None:
    rows = 70
    a, w = bf16(rows, 64), bf16((heads + 2) * dim, 64)
    cos, sin = rope_tables(rows, dim)
    q, k, v = (torch.full((rows, n * dim), float("nan")).bfloat16() for n in (max(heads, 1), 1, 1))
    given = {
        "keys": k,
        "values": v,
        "cos": cos,
        "sin": sin,
        "length": torch.tensor([length], dtype=torch.int32),
    }
    arranged = interleave_heads(w, dim)
    run(a, arranged, q, EPILOGUE="rope", HEADS=heads, D=dim, **given | {"BN": columns})
    queries, keys, values = (a.float() @ w.float().T).split([heads * dim, dim, dim], 1)
    near(k[:length], rotate(keys, cos, sin)[:length])
    near(v[:length], values[:length])
    if heads:
        rotated = rotate(queries.unflatten(1, (heads, dim)), cos[:, None], sin[:, None]).flatten(1)
        near(q[:length], rotated[:length])
    computed = -(-length // TILES["BM"]) * TILES["BM"]
    assert (k[computed:] == 0).all() and (v[computed:] == 0).all() and k.isfinite().all()
