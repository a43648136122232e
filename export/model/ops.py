"""The few formulas that the reference and the export form share, so that they cannot drift apart.

Source: openpi's PyTorch model. Statistics, rotary angles and softmax are fp32 whatever the
activations are.
"""

import torch
from torch import Tensor

EPSILON = 1e-6
MASKED = -2.3819763e38
"""Added to masked scores in fp32: finite, so that a fully masked row is uniform and not NaN."""


def rms(x: Tensor) -> Tensor:
    """x / rms(x) over the last axis, computed and returned in fp32, without any weight."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON)


def modulate(x: Tensor, modulation: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """adaRMS norm. modulation [..., 3 * width] fp32 holds scale, shift, gate. Returns (y, gate)."""
    scale, shift, gate = modulation.chunk(3, -1)
    return (rms(x) * (1 + scale) + shift).to(dtype), gate.to(dtype)


def rope_table(
    positions: int, head_dim: int, frequency_dtype: torch.dtype, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """(cos, sin), each fp32 [positions, head_dim / 2], theta 10000.

    frequency_dtype float32 is what JAX trains with. bfloat16 reproduces openpi's and LeRobot's
    PyTorch ports, whose cast of the module also rounds the frequency buffer (up to 1 rad off at
    position 777).
    """
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    frequency = (10000.0**-exponent).to(frequency_dtype).float()
    angle = torch.arange(positions, dtype=torch.float32, device=device)[:, None] * frequency
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [..., head_dim] by tables [..., head_dim / 2] in x's dtype, halves split."""
    a, b = x.chunk(2, -1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention written out as product, fp32 softmax, product: what every engine parses.

    q [..., T, d], k and v [..., S, d], bias fp32 broadcast to [..., T, S]. Returns [..., T, d].
    The scale is applied in fp32, since a traced bf16 graph would round 72 ** -0.5 itself; Gemma's 1/16
    is a power of two, for which openpi's order gives the same bits.
    """
    scores = torch.matmul(q, k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    return torch.matmul(torch.softmax(scores, -1).to(v.dtype), v)
