"""pi0.5 as openpi's PyTorch port computes it, in one file: the yardstick of every gate.

Written for reading and for exactness, not for speed: masks, padding and every layer are here, and
nothing is folded or fused. `to_bf16` gives the dtypes of a served openpi model; without it the
model is fp32. Parameter names are the canonical ones (parameters.py).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.model import ops
from export.model.parameters import keeps_fp32
from export.model.schedule import condition, time_embedding, times
from pi05_runtime.geometry import Geometry, Stack, Vision

Cache = list[tuple[Tensor, Tensor]]
"""One (keys after RoPE, values) a layer, each [batch, 1, tokens, head_dim]."""


class VisionAttention(nn.Module):
    def __init__(self, v: Vision):
        super().__init__()
        self.heads = v.heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(v.width, v.width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class VisionMlp(nn.Module):
    def __init__(self, v: Vision):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(v.width, v.mlp), nn.Linear(v.mlp, v.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class VisionLayer(nn.Module):
    def __init__(self, v: Vision):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(v.width, eps=ops.EPSILON)
        self.self_attn = VisionAttention(v)
        self.layer_norm2 = nn.LayerNorm(v.width, eps=ops.EPSILON)
        self.mlp = VisionMlp(v)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class VisionTower(nn.Module):
    def __init__(self, v: Vision):
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, v.width, v.patch, v.patch)
        self.position_embedding = nn.Embedding(v.tokens, v.width)
        self.layers = nn.ModuleList(VisionLayer(v) for _ in range(v.depth))
        self.post_layernorm = nn.LayerNorm(v.width, eps=ops.EPSILON)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embedding(pixels.float()).flatten(2).transpose(1, 2)
        x = (x + self.position_embedding.weight).to(self.post_layernorm.weight.dtype)
        for layer in self.layers:
            x = layer(x)
        return self.post_layernorm(x)


class Norm(nn.Module):
    """Plain RMS norm with (1 + weight), or adaRMS when it is given a condition width."""

    def __init__(self, width: int, conditioned: bool):
        super().__init__()
        if conditioned:
            self.dense = nn.Linear(width, 3 * width)
        else:
            self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if c is not None:
            return ops.modulate(x, self.dense(c)[:, None], x.dtype)
        return (ops.rms(x) * (1 + self.weight)).to(x.dtype), None


class GemmaAttention(nn.Module):
    def __init__(self, s: Stack):
        super().__init__()
        self.heads = s.heads
        self.q_proj = nn.Linear(s.width, s.heads * s.head_dim, bias=False)
        self.k_proj = nn.Linear(s.width, s.head_dim, bias=False)
        self.v_proj = nn.Linear(s.width, s.head_dim, bias=False)
        self.o_proj = nn.Linear(s.heads * s.head_dim, s.width, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        q = self.q_proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.k_proj(x)[:, None], self.v_proj(x)[:, None]
        q, k = ops.rotate(q, cos, sin), ops.rotate(k, cos, sin)
        own = (k, v)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        return self.o_proj(ops.attend(q, k, v, bias).transpose(1, 2).flatten(2)), own


class GemmaMlp(nn.Module):
    def __init__(self, s: Stack):
        super().__init__()
        self.gate_proj = nn.Linear(s.width, s.mlp, bias=False)
        self.up_proj = nn.Linear(s.width, s.mlp, bias=False)
        self.down_proj = nn.Linear(s.mlp, s.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


class GemmaLayer(nn.Module):
    def __init__(self, s: Stack, conditioned: bool):
        super().__init__()
        self.input_layernorm = Norm(s.width, conditioned)
        self.self_attn = GemmaAttention(s)
        self.post_attention_layernorm = Norm(s.width, conditioned)
        self.mlp = GemmaMlp(s)

    def forward(
        self,
        x: Tensor,
        c: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        bias: Tensor,
        past: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, gate = self.input_layernorm(x, c)
        y, own = self.self_attn(y, cos, sin, bias, past)
        x = x + (y if gate is None else y * gate)
        y, gate = self.post_attention_layernorm(x, c)
        y = self.mlp(y)
        return x + (y if gate is None else y * gate), own


class Gemma(nn.Module):
    """A stack's layers. The final norm is the expert's only: the prefix's output is never used."""

    def __init__(self, s: Stack, conditioned: bool):
        super().__init__()
        self.layers = nn.ModuleList(GemmaLayer(s, conditioned) for _ in range(s.depth))
        if conditioned:
            self.norm = Norm(s.width, conditioned)


class Reference(nn.Module):
    """The whole policy: images, tokens and noise in, normalised actions out."""

    def __init__(self, geometry: Geometry, rope_frequency_dtype: torch.dtype = torch.float32):
        super().__init__()
        g = geometry
        self.rope_frequency_dtype = rope_frequency_dtype
        self.head_dim = g.prefix.head_dim
        self.vision = VisionTower(g.vision)
        self.projector = nn.Linear(g.vision.width, g.prefix.width)
        self.embedding = nn.Embedding(g.vocabulary, g.prefix.width)
        self.prefix = Gemma(g.prefix, conditioned=False)
        self.expert = Gemma(g.expert, conditioned=True)
        self.action_in_proj = nn.Linear(g.action_width, g.expert.width)
        self.action_out_proj = nn.Linear(g.expert.width, g.action_width)
        self.time_mlp_in = nn.Linear(g.expert.width, g.expert.width)
        self.time_mlp_out = nn.Linear(g.expert.width, g.expert.width)

    def to_bf16(self) -> "Reference":
        """Cast in place to the dtypes of openpi's served PyTorch model."""
        for name, parameter in self.named_parameters():
            parameter.data = parameter.data.to(torch.float32 if keeps_fp32(name) else torch.bfloat16)
        return self

    def embed_images(self, pixels: Tensor) -> Tensor:
        """pixels [batch, 3, size, size] in [-1, 1] -> image tokens [batch, tokens, prefix width]."""
        return self.projector(self.vision(pixels))

    def embed_prompt(self, tokens: Tensor) -> Tensor:
        """token ids [batch, length] -> scaled embeddings [batch, length, prefix width]."""
        return self.embedding(tokens) * self.embedding.embedding_dim**0.5

    def prefill(self, embeddings: Tensor, valid: Tensor) -> Cache:
        """embeddings [batch, P, width], valid bool [batch, P] -> cache of P tokens a layer."""
        positions = valid.long().cumsum(1) - 1
        cos, sin = self._rope(positions)
        bias = torch.where(valid[:, None, None, :] & valid[:, None, :, None], 0.0, ops.MASKED)
        x, cache = embeddings, []
        for layer in self.prefix.layers:
            x, own = layer(x, None, cos, sin, bias, None)
            cache.append(own)
        return cache

    def velocity(self, x: Tensor, t: Tensor, cache: Cache, valid: Tensor) -> Tensor:
        """Flow velocity [batch, horizon, action width] fp32 at noise level t (scalar, 1 is noise)."""
        embedding = time_embedding(t.expand(x.shape[0]), self.time_mlp_in.in_features)
        c = condition(self.time_mlp_in, self.time_mlp_out, embedding)
        horizon = x.shape[1]
        positions = valid.long().sum(1, keepdim=True) + torch.arange(horizon, device=x.device)
        cos, sin = self._rope(positions)
        seen = torch.cat([valid, valid.new_ones(x.shape[0], horizon)], 1)
        bias = torch.where(seen[:, None, None, :], 0.0, ops.MASKED)
        h = self.action_in_proj(x).to(self.expert.layers[0].self_attn.q_proj.weight.dtype)
        for layer, past in zip(self.expert.layers, cache, strict=True):
            h, _ = layer(h, c, cos, sin, bias, past)
        return self.action_out_proj(self.expert.norm(h, c)[0].float())

    @torch.no_grad()
    def sample(self, noise: Tensor, cache: Cache, valid: Tensor, steps: int, schedule: str) -> Tensor:
        """noise [batch, horizon, action width] fp32 -> normalised actions after `steps` Euler steps."""
        x, dt = noise, torch.tensor(-1.0 / steps)
        for t in times(steps, schedule):
            x = x + dt * self.velocity(x, t, cache, valid)
        return x

    def _rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = ops.rope_table(
            int(positions.max()) + 1, self.head_dim, self.rope_frequency_dtype, positions.device
        )
        return cos[positions][:, None], sin[positions][:, None]
