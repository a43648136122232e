"""Writes a pi0.5 checkpoint with seeded weights in openpi's on-disk layout, at any geometry.

Stands in for a trained checkpoint of full size, which shows what the pipeline costs. Weights are scaled so
that activations keep a trained model's order of magnitude, and the modulation layers are strong enough for
time to matter.
"""

import math
import re
from pathlib import Path

import torch
from torch import Tensor

from demo.openpi_layout import write_openpi
from export.model.parameters import canonical_shapes
from export.stage import progress
from pi05_runtime.geometry import Geometry

HORIZON = 10
GAINS = {
    r"\.[qk]_proj\.weight$": 1.5,
    r"^expert\..*\.o_proj\.weight$": 3.0,
    r"^vision\.patch_embedding\.weight$": 2.0,
}
"""Factors on fan-in scaled matrices, by name. Without them attention averages all tokens away and
actions hardly depend on what the robot sees; with them another observation moves the actions past the
gates' thresholds, so that a blind engine fails."""


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
    weights = {
        name: tensor(name, shape, generator)
        for name, shape in progress(shapes.items(), desc="seeded weights", unit="tensor")
    }
    texts = {str(p.relative_to(assets)): p.read_text() for p in sorted(assets.rglob("*")) if p.is_file()}
    write_openpi(directory, weights, geometry, HORIZON, texts)
