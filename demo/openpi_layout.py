"""Writes weights as a directory that openpi's PyTorch converter could have written.

The names, the bf16 values, the alias of the embedding table and the two tensors that nothing reads are those
of a published checkpoint, so that a policy made here enters the pipeline through the same door.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import msgspec
import torch
from safetensors.torch import save_file
from torch import Tensor

from export.checkpoint.openpi import EMBEDDING_ALIAS, PREFIXES, UNUSED
from pi05_runtime.geometry import Geometry
from pi05_runtime.interface import Statistics
from pi05_runtime.staging import staged


def stored_name(canonical: str) -> str:
    """Name of a canonical tensor in openpi's file, with SigLIP's older `vision_model` level."""
    if canonical == "embedding.weight":
        return EMBEDDING_ALIAS
    stored, prefix = next((s, c) for s, c in PREFIXES.items() if canonical.startswith(c))
    return stored.replace("vision_tower.", "vision_tower.vision_model.") + canonical.removeprefix(prefix)


def norm_stats(suite: str, statistics: Mapping[str, Statistics]) -> dict[str, str]:
    """The assets of a policy trained on `suite`. statistics: of `state` and `actions`."""
    found = {"norm_stats": msgspec.to_builtins(dict(statistics))}
    return {f"{suite}/norm_stats.json": json.dumps(found, indent=2) + "\n"}


def write_openpi(
    directory: Path,
    weights: Mapping[str, Tensor],
    geometry: Geometry,
    horizon: int,
    assets: Mapping[str, str],
) -> None:
    """weights: canonical names. assets: the text of each file below `assets`, by its path there."""
    tensors = {stored_name(name): w.bfloat16().contiguous() for name, w in weights.items()}
    unused = {"norm": (geometry.prefix.width,), "lm_head": (geometry.vocabulary, geometry.expert.width)}
    for name in sorted(UNUSED):
        tensors[name] = torch.zeros(unused[name.split(".")[-2]], dtype=torch.bfloat16)
    config = {
        "action_dim": geometry.action_width,
        "action_horizon": horizon,
        "paligemma_variant": "gemma_2b",
        "action_expert_variant": "gemma_300m",
        "precision": "bfloat16",
        "geometry": msgspec.to_builtins(geometry),
    }
    with staged(directory) as folder:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        for name, text in assets.items():
            path = folder / "assets" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
