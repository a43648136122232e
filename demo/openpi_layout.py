"""Writes trained weights as a directory that openpi's PyTorch converter could have written.

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

from demo.seeded import stored_name
from export.checkpoint.openpi import UNUSED
from pi05_runtime.geometry import Geometry
from pi05_runtime.interface import Statistics
from pi05_runtime.staging import staged


def write_openpi(
    directory: Path,
    weights: Mapping[str, Tensor],
    geometry: Geometry,
    horizon: int,
    statistics: Mapping[str, Statistics],
) -> None:
    """weights: canonical names. statistics: of `state` and `actions`."""
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
        assets = folder / "assets" / "metaworld"
        assets.mkdir(parents=True)
        norm_stats = {"norm_stats": msgspec.to_builtins(dict(statistics))}
        (assets / "norm_stats.json").write_text(json.dumps(norm_stats, indent=2) + "\n")
