"""Time: the steps of the flow, and the adaRMS modulations that depend on nothing else.

The times of every step count are constants, so the time MLP and the 37 modulation layers (116 M
parameters in the real model) are evaluated here, once, and become a table in the bundle. The step
count is then chosen when a bundle is loaded, on quantized engines too.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from pi05_runtime.geometry import Geometry

MIN_PERIOD, MAX_PERIOD = 4e-3, 4.0


def times(steps: int, schedule: str = "openpi") -> Tensor:
    """Times of the `steps` evaluations, fp32 [steps], from 1 down to 1 / steps.

    `openpi` accumulates t += dt in fp32; `lerobot` computes 1 + i * dt in double and rounds.
    """
    if schedule == "lerobot":
        return torch.tensor([1.0 + i * (-1.0 / steps) for i in range(steps)], dtype=torch.float32)
    dt, t, out = torch.tensor(-1.0 / steps), torch.tensor(1.0), []
    for _ in range(steps):
        out.append(t)
        t = t + dt
    return torch.stack(out)


def time_embedding(t: Tensor, width: int) -> Tensor:
    """Sine and cosine embedding of t [n], in double as openpi does, returned fp32 [n, width]."""
    fraction = torch.linspace(0.0, 1.0, width // 2, dtype=torch.float64, device=t.device)
    period = MIN_PERIOD * (MAX_PERIOD / MIN_PERIOD) ** fraction
    angle = t.double()[:, None] * (2 * torch.pi / period)
    return torch.cat([angle.sin(), angle.cos()], -1).float()


Linear = Callable[[Tensor], Tensor]


def condition(time_mlp_in: Linear, time_mlp_out: Linear, embedding: Tensor) -> Tensor:
    """Condition vectors [n, width] fp32 of time embeddings [n, width]; SiLU after both layers."""
    return F.silu(time_mlp_out(F.silu(time_mlp_in(embedding))))


@torch.no_grad()
def modulation_table(weights: Mapping[str, Tensor], geometry: Geometry, t: Tensor) -> Tensor:
    """Modulations fp32 [len(t), 2 * depth + 1, 3 * width] of the times t, canonical weights.

    Rows: input and post-attention norm of layer 0, of layer 1, ..., then the final norm. Columns:
    scale, shift, gate.
    """

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"].float(), weights[f"{name}.bias"].float())

    c = condition(
        partial(linear, "time_mlp_in"),
        partial(linear, "time_mlp_out"),
        time_embedding(t, geometry.expert.width),
    )
    norms = [
        f"expert.layers.{i}.{norm}.dense"
        for i in range(geometry.expert.depth)
        for norm in ("input_layernorm", "post_attention_layernorm")
    ]
    return torch.stack([linear(name, c) for name in (*norms, "expert.norm.dense")], 1)
