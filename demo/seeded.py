"""Writes a pi0.5 checkpoint with seeded weights in openpi's on-disk layout, at any geometry.

Stands in for a trained checkpoint: the demo's own until one is trained, and the full-size one that
shows what the pipeline costs. Weights are scaled so that activations keep a trained model's order of
magnitude, and the modulation layers are strong enough for time to matter.

    python -m demo.seeded            writes demo/checkpoint
"""

import json
import math
import re
import shutil
from pathlib import Path

import msgspec
import torch
from safetensors.torch import save_file
from torch import Tensor

from export.checkpoint.openpi import EMBEDDING_ALIAS, PREFIXES, UNUSED
from export.model.parameters import canonical_shapes
from export.stage import progress
from pi05_runtime.geometry import Geometry, Stack, Vision
from pi05_runtime.staging import staged

DEMO = Geometry(
    vision=Vision(image_size=112, patch=14, width=128, depth=3, heads=4, mlp=256),
    prefix=Stack(width=256, depth=3, heads=8, head_dim=16, mlp=384),
    expert=Stack(width=128, depth=3, heads=8, head_dim=16, mlp=256),
    vocabulary=1024,
)
HORIZON = 10
GAINS = {
    r"\.[qk]_proj\.weight$": 1.5,
    r"^expert\..*\.o_proj\.weight$": 3.0,
    r"^vision\.patch_embedding\.weight$": 2.0,
}
"""Factors on fan-in scaled matrices, by name. Without them attention averages all tokens away and
actions hardly depend on what the robot sees; with them another observation moves the actions past the
gates' thresholds, so that a blind engine fails."""


def stored_name(canonical: str) -> str:
    """Name of a canonical tensor in openpi's file, with SigLIP's older `vision_model` level."""
    if canonical == "embedding.weight":
        return EMBEDDING_ALIAS
    stored, prefix = next((s, c) for s, c in PREFIXES.items() if canonical.startswith(c))
    return stored.replace("vision_tower.", "vision_tower.vision_model.") + canonical.removeprefix(prefix)


def tensor(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """bf16 values of one tensor: fan-in scaled matrices, norms near one, small biases."""
    values = torch.empty(shape).normal_(generator=generator)
    if name.endswith(("norm1.weight", "norm2.weight", "post_layernorm.weight")):
        values = 1 + 0.1 * values
    elif len(shape) == 1:
        values *= 0.05
    elif name == "embedding.weight":
        values *= shape[1] ** -0.5
    else:
        values *= math.prod(shape[1:]) ** -0.5
    gain = math.prod(factor for pattern, factor in GAINS.items() if re.search(pattern, name))
    return (gain * values).bfloat16()


def write_checkpoint(directory: Path, geometry: Geometry, assets: Path, seed: int) -> None:
    """model.safetensors, config.json and a copy of `assets`. One seed, one file, bit for bit."""
    shapes = {n: s for names in canonical_shapes(geometry).values() for n, s in names.items()}
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        stored_name(name): tensor(name, shape, generator)
        for name, shape in progress(shapes.items(), desc="seeded weights", unit="tensor")
    }
    unused = {"norm": (geometry.prefix.width,), "lm_head": (geometry.vocabulary, geometry.expert.width)}
    for name in sorted(UNUSED):
        tensors[name] = torch.zeros(unused[name.split(".")[-2]], dtype=torch.bfloat16)
    config = {
        "action_dim": geometry.action_width,
        "action_horizon": HORIZON,
        "paligemma_variant": "gemma_2b",
        "action_expert_variant": "gemma_300m",
        "precision": "bfloat16",
        "geometry": msgspec.to_builtins(geometry),
    }
    with staged(directory) as folder:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        shutil.copytree(assets, folder / "assets")


if __name__ == "__main__":
    write_checkpoint(Path("demo/checkpoint"), DEMO, Path("demo/assets"), seed=0)
