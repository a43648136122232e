"""Canonical parameter names and shapes, derived from the geometry.

Every checkpoint layout is translated to these names, and a checkpoint is accepted only if it holds
exactly these tensors. They are grouped by the component that needs them, and stored one file a
component, so that weights which did not change do not re-run the stages of their component.
"""

from collections.abc import Iterator

from pi05_runtime.geometry import Geometry, Stack

Shape = tuple[int, ...]

FILES = ("vision", "prefill", "denoise", "embedding")
"""Canonical safetensors files: one a component, and the token table, which needs no engine."""

KEPT_FP32 = (
    "vision.patch_embedding.",
    "vision.position_embedding.",
    "input_layernorm.",
    "post_attention_layernorm.",
    "prefix.norm.",
    "expert.norm.",
    "action_in_proj.",
    "action_out_proj.",
    "time_mlp_",
)
"""Parts of names that openpi's bf16 mode keeps in fp32 (PyTorch port, selective cast)."""


def keeps_fp32(name: str) -> bool:
    """Whether the bf16 model holds the tensor `name` in fp32."""
    return any(part in name for part in KEPT_FP32)


def canonical_shapes(geometry: Geometry) -> dict[str, dict[str, Shape]]:
    """File -> canonical name -> shape (torch layout, linear weights [out, in])."""
    g = geometry
    return {
        "vision": dict(_vision(g)),
        "prefill": dict(_gemma("prefix", g.prefix, conditioned=False)),
        "denoise": dict(_denoise(g)),
        "embedding": {"embedding.weight": (g.vocabulary, g.prefix.width)},
    }


def _linear(name: str, out: int, inp: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (out, inp)
    yield f"{name}.bias", (out,)


def _vision(g: Geometry) -> Iterator[tuple[str, Shape]]:
    v = g.vision
    yield "vision.patch_embedding.weight", (v.width, 3, v.patch, v.patch)
    yield "vision.patch_embedding.bias", (v.width,)
    yield "vision.position_embedding.weight", (v.tokens, v.width)
    for i in range(v.depth):
        layer = f"vision.layers.{i}"
        for norm in ("layer_norm1", "layer_norm2"):
            yield f"{layer}.{norm}.weight", (v.width,)
            yield f"{layer}.{norm}.bias", (v.width,)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _linear(f"{layer}.self_attn.{name}", v.width, v.width)
        yield from _linear(f"{layer}.mlp.fc1", v.mlp, v.width)
        yield from _linear(f"{layer}.mlp.fc2", v.width, v.mlp)
    yield "vision.post_layernorm.weight", (v.width,)
    yield "vision.post_layernorm.bias", (v.width,)
    yield from _linear("projector", g.prefix.width, v.width)


def _gemma(stack_name: str, s: Stack, conditioned: bool) -> Iterator[tuple[str, Shape]]:
    for i in range(s.depth):
        layer = f"{stack_name}.layers.{i}"
        yield f"{layer}.self_attn.q_proj.weight", (s.heads * s.head_dim, s.width)
        yield f"{layer}.self_attn.k_proj.weight", (s.head_dim, s.width)
        yield f"{layer}.self_attn.v_proj.weight", (s.head_dim, s.width)
        yield f"{layer}.self_attn.o_proj.weight", (s.width, s.heads * s.head_dim)
        yield f"{layer}.mlp.gate_proj.weight", (s.mlp, s.width)
        yield f"{layer}.mlp.up_proj.weight", (s.mlp, s.width)
        yield f"{layer}.mlp.down_proj.weight", (s.width, s.mlp)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            if conditioned:
                yield from _linear(f"{layer}.{norm}.dense", 3 * s.width, s.width)
            else:
                yield f"{layer}.{norm}.weight", (s.width,)


def _denoise(g: Geometry) -> Iterator[tuple[str, Shape]]:
    width = g.expert.width
    yield from _gemma("expert", g.expert, conditioned=True)
    yield from _linear("expert.norm.dense", 3 * width, width)
    yield from _linear("action_in_proj", width, g.action_width)
    yield from _linear("action_out_proj", g.action_width, width)
    yield from _linear("time_mlp_in", width, width)
    yield from _linear("time_mlp_out", width, width)
