"""From canonical weights to the export form: concatenations and norm folding, in fp32, rounded once.

Weights come as a mapping so that a 7 GB checkpoint can stay a memory map: each tensor is read when
its place in the export form is filled, and copied even where nothing changes, so that the map can go.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from export.model.components import Denoise, Prefill, Vision
from export.model.ops import rope_table
from pi05_runtime.geometry import Geometry
from pi05_runtime.interface import Interface

Weights = Mapping[str, Tensor]
QKV = ("q_proj", "k_proj", "v_proj")


def build(
    component: str,
    weights: Weights,
    geometry: Geometry,
    interface: Interface,
    dtype: torch.dtype,
    rope_frequency_dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """The component's network in `dtype` (torch.bfloat16 or torch.float32), ready to run.

    In bf16 the patch embedding, the action projections and the rotary tables stay fp32, as openpi
    has them. Folded weights differ from the reference's in their one rounding, not in fp32.
    """
    g = geometry
    # Every prefix position, and in denoise the chunk behind the longest prefix.
    positions = len(interface.cameras) * g.vision.tokens + interface.max_prompt_tokens + interface.horizon
    make: dict[str, Callable[[], nn.Module]] = {
        "vision": lambda: Vision(g),
        "prefill": lambda: Prefill(g, positions),
        "denoise": lambda: Denoise(g, positions),
    }
    fold = {"vision": _vision, "prefill": _prefill, "denoise": _denoise}[component]
    state = fold(weights, g, dtype)
    if component != "vision":
        state["cos"], state["sin"] = rope_table(positions, g.prefix.head_dim, rope_frequency_dtype)
    with torch.device("meta"):
        module = make[component]()
    module.load_state_dict(state, strict=True, assign=True)
    return module.requires_grad_(False).eval()


def _vision(w: Weights, g: Geometry, dtype: torch.dtype) -> dict[str, Tensor]:
    state = {
        "patch_embedding.weight": w["vision.patch_embedding.weight"].flatten(1).float(),
        "patch_embedding.bias": w["vision.patch_embedding.bias"].float(),
        "position": w["vision.position_embedding.weight"].float(),
    }
    renamed = {"norm": "vision.post_layernorm", "projector": "projector"}
    for i in range(g.vision.depth):
        source, target = f"vision.layers.{i}", f"layers.{i}"
        for kind in ("weight", "bias"):
            parts = [w[f"{source}.self_attn.{name}.{kind}"] for name in QKV]
            state[f"{target}.qkv.{kind}"] = torch.cat(parts).to(dtype)
        renamed |= {
            f"{target}.norm1": f"{source}.layer_norm1",
            f"{target}.norm2": f"{source}.layer_norm2",
            f"{target}.out": f"{source}.self_attn.out_proj",
            f"{target}.fc1": f"{source}.mlp.fc1",
            f"{target}.fc2": f"{source}.mlp.fc2",
        }
    for target, source in renamed.items():
        for kind in ("weight", "bias"):
            state[f"{target}.{kind}"] = w[f"{source}.{kind}"].to(dtype, copy=True)
    return state


def _prefill(w: Weights, g: Geometry, dtype: torch.dtype) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    last = g.prefix.depth - 1
    for i in range(last):
        source = f"prefix.layers.{i}"
        state |= _gemma_layer(
            w,
            source,
            f"layers.{i}",
            dtype,
            attention_norm=1 + w[f"{source}.input_layernorm.weight"].float(),
            mlp_norm=1 + w[f"{source}.post_attention_layernorm.weight"].float(),
        )
    source = f"prefix.layers.{last}"
    kv = torch.cat([w[f"{source}.self_attn.{name}.weight"].float() for name in QKV[1:]])
    state["last.kv.weight"] = (kv * (1 + w[f"{source}.input_layernorm.weight"].float())).to(dtype)
    return state


def _denoise(w: Weights, g: Geometry, dtype: torch.dtype) -> dict[str, Tensor]:
    state = {
        f"{name}.{kind}": w[f"{name}_proj.{kind}"].float()
        for name in ("action_in", "action_out")
        for kind in ("weight", "bias")
    }
    for i in range(g.expert.depth):
        state |= _gemma_layer(w, f"expert.layers.{i}", f"layers.{i}", dtype)
    return state


def _gemma_layer(
    w: Weights,
    source: str,
    target: str,
    dtype: torch.dtype,
    attention_norm: Tensor | float = 1.0,
    mlp_norm: Tensor | float = 1.0,
) -> dict[str, Tensor]:
    """A fused layer; the norms are multipliers of the columns of the matrices that they precede."""
    qkv = torch.cat([w[f"{source}.self_attn.{name}.weight"].float() for name in QKV])
    gate_up = torch.cat([w[f"{source}.mlp.{name}.weight"].float() for name in ("gate_proj", "up_proj")])
    return {
        f"{target}.qkv.weight": (qkv * attention_norm).to(dtype),
        f"{target}.o.weight": w[f"{source}.self_attn.o_proj.weight"].to(dtype, copy=True),
        f"{target}.gate_up.weight": (gate_up * mlp_norm).to(dtype),
        f"{target}.down.weight": w[f"{source}.mlp.down_proj.weight"].to(dtype, copy=True),
    }
