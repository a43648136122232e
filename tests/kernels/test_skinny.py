"""The product of an action chunk's few rows, with the norm before it, against fp32 PyTorch."""

import pytest
import torch
import torch.nn.functional as F

from export.engine.plan.source import interleave_halves, interleave_pair
from export.engine.plan.tiles import skinny_tiles
from export.kernels.skinny import skinny
from tests.kernels.operands import FP8, bf16, codes, fp32, near, rms, rope_tables, rotate

OPTIONAL = ("bias", "residual", "modulation", "gate", "keys", "values", "cos", "sin", "length", "dt", "ahead")


def run(a, w, out, **given):
    """The kernel with every choice of tiles that its shape has; all must agree."""
    rows, (n, k) = len(a), w.shape
    constants = {"N": n, "K": k, "HEADS": 0, "D": 0, "EPILOGUE": "linear", "AHEAD": 0}
    constants |= {name: given.pop(name) for name in constants.keys() & given.keys()}
    scales = {"scale": 1.0, "a_inverse_scale": 1.0, "inverse_scale": 1.0}
    choices = list(skinny_tiles(rows, n, k, constants["D"] or None))
    assert choices
    for tiles in choices:
        grid = (-(-n // tiles["BN"]),)
        operands = dict.fromkeys(OPTIONAL) | scales | given
        skinny[grid](a, w, out, M=rows, **operands, **constants, **dict(tiles.constants))
        yield out


def modulated(x, modulation):
    k = x.shape[1]
    return rms(x) * (1 + modulation[:k]) + modulation[k : 2 * k]


@pytest.mark.parametrize("rows", [5, 10, 16, 50])
@pytest.mark.parametrize(("n", "k"), [(40, 96), (32, 128), (128, 32)])
def test_gate_and_residual(rows: int, n: int, k: int) -> None:
    a, w, gate, residual = codes(rows, k), codes(n, k), fp32(n), bf16(rows, n)
    out = torch.empty(rows, n).bfloat16()
    for found in run(a, w, out, residual=residual, gate=gate, scale=0.3):
        near(found, a.float() @ w.float().T * 0.3 * gate + residual.float())


def test_norm_rounds_to_the_codes_of_the_weights() -> None:
    x, w, modulation = bf16(10, 128), codes(64, 128), fp32(3 * 128)
    scale = modulated(x, modulation).abs().max().item() / 448
    y = (modulated(x, modulation) / scale).to(FP8).float() * scale
    up, gate = (w.float() * 0.01).split(32)
    given = {
        "modulation": modulation,
        "scale": scale * 0.01,
        "a_inverse_scale": 1 / scale,
        "EPILOGUE": "geglu",
    }
    for found in run(x, interleave_pair(w), torch.empty(10, 32).bfloat16(), **given):
        near(found, F.gelu(y @ up.T, approximate="tanh") * (y @ gate.T), tolerance=2e-2)


@pytest.mark.parametrize("heads", [3, 8])
def test_rope_begins_behind_the_prefix(heads: int) -> None:
    dim, start, rows = 16, 21, 10
    x, w, modulation = bf16(rows, 64), bf16((heads + 2) * dim, 64), fp32(3 * 64)
    cos, sin = rope_tables(start + rows, dim)
    q, k, v = (torch.empty(rows, n * dim).bfloat16() for n in (heads, 1, 1))
    given = {
        "keys": k,
        "values": v,
        "cos": cos,
        "sin": sin,
        "length": torch.tensor([start], dtype=torch.int32),
    }
    given |= {"modulation": modulation, "EPILOGUE": "rope", "HEADS": heads, "D": dim}
    y = modulated(x, modulation).bfloat16().float() @ w.float().T
    queries, keys, values = y.split([heads * dim, dim, dim], 1)
    c, s = cos[start:], sin[start:]
    for _ in run(x, interleave_halves(w, heads + 1, dim), q, **given):
        near(k, rotate(keys, c, s))
        near(v, values)
        near(q, rotate(queries.unflatten(1, (heads, dim)), c[:, None], s[:, None]).flatten(1))


def test_euler_step_is_fp32() -> None:
    h, w, bias, x, modulation = bf16(10, 64), fp32(32, 64), fp32(32), fp32(10, 32), fp32(3 * 64)
    dt = torch.tensor([-0.1])
    given = {"bias": bias, "residual": x, "modulation": modulation, "dt": dt, "EPILOGUE": "euler"}
    for found in run(h, w, torch.empty(10, 32), **given):
        near(found, x - 0.1 * (modulated(h, modulation) @ w.T + bias), tolerance=1e-6)
