"""Random operands, and what a result is held to."""

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
_generator = torch.Generator("cpu").manual_seed(7)


def fp32(*shape: int) -> Tensor:
    return torch.randn(shape, generator=_generator, device="cpu").to(torch.get_default_device())


def bf16(*shape: int) -> Tensor:
    return fp32(*shape).bfloat16()


def codes(*shape: int) -> Tensor:
    """FP8 of either sign and of all sizes."""
    return (fp32(*shape) * 4).to(FP8)


def near(found: Tensor, expected: Tensor, tolerance: float = 3e-3) -> None:
    """Relative distance, as one rounding to bf16 and another order of a sum leave it."""
    assert found.shape == expected.shape and found.float().isfinite().all()
    distance = (found.float() - expected.float()).norm() / expected.float().norm()
    assert distance < tolerance, distance


def rope_tables(positions: int, dim: int) -> tuple[Tensor, Tensor]:
    angles = torch.arange(positions)[:, None] * 10000 ** (-torch.arange(dim // 2) / (dim / 2))
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def rms(x: Tensor) -> Tensor:
    return x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6)
