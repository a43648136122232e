"""What surrounds the products: norms, patches, and tokens put in a row."""

import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from export.engine.plan.products import thirds
from export.engine.plan.source import Linear
from export.kernels.embed import join, patches
from export.kernels.norm import norm
from tests.kernels.operands import FP8, bf16, fp32, near, rms


def run(x, out, scale=1.0, followed=0, **given):
    names = ("parts", "shift", "gate", "summed", "weight", "bias", "next_weight", "next_bias", "modulation")
    splits = len(given["parts"]) if "parts" in given else 0
    soon, later = given.get("soon"), given.get("later")
    sizes = [0 if weights is None else weights.nbytes for weights in (soon, later)]
    norm[(len(x),)](
        x, *(given.get(name) for name in names), out, soon, later, len(x), scale,
        x.shape[1], 2048, splits, followed, *sizes, ADMIT=0, SOON=int(soon is not None),
    )  # fmt: skip
    return out


@pytest.mark.parametrize("width", [64, 72, 1152])
def test_norms(width: int) -> None:
    x, weight, bias, out = bf16(5, width), bf16(width), bf16(width), torch.empty(5, width).bfloat16()
    run(x, out, weight=weight, bias=bias)
    near(out, F.layer_norm(x.float(), (width,), weight.float(), bias.float(), 1e-6))
    near(run(x, out), rms(x))
    codes = run(x, torch.empty(5, width).to(FP8), 100.0)
    assert torch.equal(codes.float(), (rms(x) * 100).clamp(-448, 448).to(FP8).float())
    modulation = fp32(6 * width)
    modulated = rms(x) * (1 + modulation[:width]) + modulation[width : 2 * width]
    for followed in (0, 1):
        found = run(x, torch.empty(5, width), modulation=modulation, followed=followed)
        near(found, modulated, tolerance=1e-6)


@pytest.mark.parametrize("make", [bf16, fp32])
@pytest.mark.parametrize("splits", [1, 3])
def test_parts_are_added_before_the_norm(splits: int, make: Callable[..., Tensor]) -> None:
    x, parts, shift, out = make(5, 72), make(splits, 5, 72), make(72), torch.empty(5, 72).bfloat16()
    summed = torch.empty_like(out)
    run(x, out, parts=parts, shift=shift, summed=summed)
    near(summed, x.float() + parts.float().sum(0) + shift.float())
    near(out, rms(summed))
    gate = fp32(72)
    run(x, out, parts=parts, gate=gate, summed=summed)
    near(summed, x.float() + gate * parts.float().sum(0))


def test_weights_to_come_are_asked_for() -> None:
    # On a GPU, kernels are not interpreted, and importing it would change that.
    interpreter = sys.modules.get("tests.kernels.interpreter") or pytest.skip("not interpreted")
    interpreter.ASKED.clear()
    x, out, soon, later = bf16(5, 72), torch.empty(5, 72).bfloat16(), bf16(96, 1024), bf16(8, 8192)
    following = {"next_weight": bf16(72), "next_bias": bf16(72)}
    run(x, out, soon=soon, later=later, **following)
    near(out, rms(x))
    wanted = {weights.data_ptr() + at for weights in (soon, later) for at in range(0, weights.nbytes, 128)}
    wanted |= {tensor.data_ptr() + at for tensor in following.values() for at in (0, 128)}
    assert set(interpreter.ASKED) == wanted


def test_patches_are_fp32() -> None:
    views, side, patch, width = 2, 3, 14, 40
    images, w = fp32(views, 3, side * patch, side * patch), fp32(width, 3 * patch * patch)
    cut = torch.full((views * side * side, 3 * 640), torch.nan).bfloat16()
    patches[(len(cut),)](images, cut, side, patch, w.shape[1], 640)
    found = cut.double() @ thirds(Linear(w, 1.0, None), 640).weight.double().t()
    expected = F.conv2d(images.double(), w.double().unflatten(1, (3, patch, patch)), stride=patch)
    near(found, expected.flatten(2).transpose(1, 2).flatten(0, 1), tolerance=1e-5)


def test_join() -> None:
    first, second, out = bf16(3, 40), bf16(5, 40), torch.empty(8, 40).bfloat16()
    join[(8,)](first, second, out, 3, 40, 64)
    assert torch.equal(out, torch.cat([first, second]))
