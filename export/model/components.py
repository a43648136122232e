"""The export form: vision, prefill and denoise as the three networks that engines are built from.

The same policy as reference.py with everything removed that cannot change an action: batch, masked
cameras, padding in front of a length, the prefix stack after its last keys and values, norm weights
(folded into the next matrix), separate q/k/v and gate/up matrices, and the time MLP with its
modulation layers (tabulated, see schedule.py). Shapes: T image tokens a camera, P prefix tokens
(cameras, then the prompt's bucket), H horizon, D a stack's width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.model import ops
from pi05_runtime.geometry import Geometry, Stack
from pi05_runtime.geometry import Vision as VisionSizes


class VisionLayer(nn.Module):
    def __init__(self, v: VisionSizes):
        super().__init__()
        self.heads = v.heads
        self.norm1 = nn.LayerNorm(v.width, eps=ops.EPSILON)
        self.qkv = nn.Linear(v.width, 3 * v.width)
        self.out = nn.Linear(v.width, v.width)
        self.norm2 = nn.LayerNorm(v.width, eps=ops.EPSILON)
        self.fc1 = nn.Linear(v.width, v.mlp)
        self.fc2 = nn.Linear(v.mlp, v.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(ops.attend(q, k, v).transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x)), approximate="tanh"))


class Vision(nn.Module):
    """images fp32 [views, 3, size, size] in [-1, 1] -> image_tokens [views * T, D prefix]."""

    def __init__(self, g: Geometry):
        super().__init__()
        v = g.vision
        self.patch, self.side = v.patch, v.image_size // v.patch
        self.patch_embedding = nn.Linear(3 * v.patch**2, v.width)
        self.position = nn.Parameter(torch.empty(v.tokens, v.width))
        self.layers = nn.ModuleList(VisionLayer(v) for _ in range(v.depth))
        self.norm = nn.LayerNorm(v.width, eps=ops.EPSILON)
        self.projector = nn.Linear(v.width, g.prefix.width)

    def forward(self, images: Tensor) -> Tensor:
        n, p = self.side, self.patch
        patches = images.reshape(-1, 3, n, p, n, p).permute(0, 2, 4, 1, 3, 5).reshape(-1, n * n, 3 * p * p)
        x = (self.patch_embedding(patches) + self.position).to(self.norm.weight.dtype)
        for layer in self.layers:
            x = layer(x)
        return self.projector(self.norm(x)).flatten(0, 1)


class GemmaLayer(nn.Module):
    """One fused layer; a `None` modulation pair makes it a prefix layer with folded norms."""

    def __init__(self, s: Stack):
        super().__init__()
        self.heads, self.head_dim = s.heads, s.head_dim
        self.qkv = nn.Linear(s.width, (s.heads + 2) * s.head_dim, bias=False)
        self.o = nn.Linear(s.heads * s.head_dim, s.width, bias=False)
        self.gate_up = nn.Linear(s.width, 2 * s.mlp, bias=False)
        self.down = nn.Linear(s.mlp, s.width, bias=False)

    def project(self, y: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normed y [n, D] -> q [heads, n, d] and k [n, d], both rotated, and v [n, d]."""
        width = self.heads * self.head_dim
        q, k, v = self.qkv(y).split([width, self.head_dim, self.head_dim], -1)
        q = q.unflatten(-1, (self.heads, self.head_dim)).transpose(0, 1)
        return ops.rotate(q, cos, sin), ops.rotate(k, cos, sin), v

    def mix(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return self.o(ops.attend(q, k, v, bias).transpose(0, 1).flatten(1))

    def mlp(self, y: Tensor) -> Tensor:
        gate, up = self.gate_up(y).chunk(2, -1)
        return self.down(F.gelu(gate, approximate="tanh") * up)


class LastPrefixLayer(nn.Module):
    """All that is left of the prefix stack's last layer: nothing reads beyond its K and V."""

    def __init__(self, s: Stack):
        super().__init__()
        self.kv = nn.Linear(s.width, 2 * s.head_dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        k, v = self.kv(ops.rms(x).to(x.dtype)).chunk(2, -1)
        return ops.rotate(k, cos, sin), v


class Prefill(nn.Module):
    """image_tokens [views * T, D], prompt_embeddings [bucket, D], prefix_length int32 scalar
    -> keys, values [depth, P, head_dim]. Rows at and beyond prefix_length are never attended to."""

    def __init__(self, g: Geometry, positions: int):
        super().__init__()
        s = g.prefix
        self.layers = nn.ModuleList(GemmaLayer(s) for _ in range(s.depth - 1))
        self.last = LastPrefixLayer(s)
        self.register_buffer("cos", torch.empty(positions, s.head_dim // 2))
        self.register_buffer("sin", torch.empty(positions, s.head_dim // 2))

    def forward(
        self, image_tokens: Tensor, prompt_embeddings: Tensor, prefix_length: Tensor
    ) -> tuple[Tensor, Tensor]:
        x = torch.cat([image_tokens, prompt_embeddings])
        tokens = x.shape[0]
        cos, sin = self.cos[:tokens], self.sin[:tokens]
        bias = torch.where(torch.arange(tokens, dtype=torch.int32) < prefix_length, 0.0, ops.MASKED)
        keys, values = [], []
        for layer in self.layers:
            q, k, v = layer.project(ops.rms(x).to(x.dtype), cos, sin)
            x = x + layer.mix(q, k, v, bias)
            x = x + layer.mlp(ops.rms(x).to(x.dtype))
            keys.append(k)
            values.append(v)
        k, v = self.last(x, cos, sin)
        return torch.stack([*keys, k]), torch.stack([*values, v])


class Denoise(nn.Module):
    """One Euler step. x fp32 [H, action width], modulation fp32 [2 * depth + 1, 3 * D], dt fp32
    scalar, keys and values [depth, P, head_dim], prefix_length int32 scalar -> next x fp32."""

    def __init__(self, g: Geometry, positions: int):
        super().__init__()
        s = g.expert
        self.action_in = nn.Linear(g.action_width, s.width)
        self.layers = nn.ModuleList(GemmaLayer(s) for _ in range(s.depth))
        self.action_out = nn.Linear(s.width, g.action_width)
        self.register_buffer("cos", torch.empty(positions, s.head_dim // 2))
        self.register_buffer("sin", torch.empty(positions, s.head_dim // 2))

    def forward(
        self, x: Tensor, modulation: Tensor, dt: Tensor, keys: Tensor, values: Tensor, prefix_length: Tensor
    ) -> Tensor:
        horizon, dtype = x.shape[0], keys.dtype
        position = prefix_length + torch.arange(horizon, dtype=torch.int32)
        cos, sin = (table.index_select(0, position) for table in (self.cos, self.sin))
        # The action's own keys come first, so that one comparison masks the cache's padding.
        visible = torch.arange(horizon + keys.shape[1], dtype=torch.int32) < prefix_length + horizon
        bias = torch.where(visible, 0.0, ops.MASKED)
        h = self.action_in(x).to(dtype)
        for i, layer in enumerate(self.layers):
            y, gate = ops.modulate(h, modulation[2 * i], dtype)
            q, k, v = layer.project(y, cos, sin)
            h = h + layer.mix(q, torch.cat([k, keys[i]]), torch.cat([v, values[i]]), bias) * gate
            y, gate = ops.modulate(h, modulation[2 * i + 1], dtype)
            h = h + layer.mlp(y) * gate
        y, _ = ops.modulate(h, modulation[-1], dtype)
        return x + dt * self.action_out(y.float())
