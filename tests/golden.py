"""Outputs of openpi's and LeRobot's own modules on a tiny pi0.5, and the same weights for ours.

golden_tiny.safetensors was written once by running both projects' PyTorch models (CPU) on seeded
weights. Its widths differ from heads * head_dim in both stacks, which catches reshape mistakes that
the real prefix (2048 = 8 * 256) would hide.
"""

from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from export.checkpoint.openpi import canonical_name
from export.model.reference import Reference
from pi05_runtime.geometry import Geometry, Stack, Vision

PATH = Path(__file__).parent / "data" / "golden_tiny.safetensors"
GEOMETRY = Geometry(
    vision=Vision(image_size=56, patch=14, width=48, depth=2, heads=4, mlp=72),
    prefix=Stack(width=64, depth=3, heads=8, head_dim=16, mlp=96),
    expert=Stack(width=40, depth=3, heads=8, head_dim=16, mlp=56),
    vocabulary=512,
)
CAMERAS = 3


@cache
def golden() -> dict[str, Tensor]:
    return load_file(PATH)


@cache
def weights() -> dict[str, Tensor]:
    """Canonical names -> fp32 tensors."""
    named = {canonical_name(k[2:]): v for k, v in golden().items() if k.startswith("w.")}
    return {name: tensor for name, tensor in named.items() if name is not None}


def reference(bf16: bool = False) -> Reference:
    """The golden model; bf16 with the ports' rounded rotary frequencies, as both served them."""
    model = Reference(GEOMETRY, torch.bfloat16 if bf16 else torch.float32)
    model.load_state_dict(weights(), strict=True)
    return (model.to_bf16() if bf16 else model).eval()


def prefix(model: Reference, vision: Reference | None = None) -> tuple[Tensor, Tensor]:
    """The golden's prefix embeddings [2, P, width] and validity [2, P], padding and all. vision: whose image
    tokens they are, if another's."""
    g = golden()
    prompt = model.embed_prompt(g["in.tokens"])
    images = [(vision or model).embed_images(g[f"in.image{i}"]).to(prompt.dtype) for i in range(CAMERAS)]
    masks = [g[f"in.image_mask{i}"][:, None].expand(-1, images[0].shape[1]) for i in range(CAMERAS)]
    return torch.cat([*images, prompt], 1), torch.cat([*masks, g["in.token_mask"]], 1)
