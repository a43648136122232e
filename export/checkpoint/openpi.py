"""openpi's two layouts: the converted PyTorch directory and the JAX directory it was converted from.

The names are those of openpi's module; LeRobot wraps the same module, so its opener uses this table.
"""

from pathlib import Path

from export.checkpoint.norm_stats import find_norm_stats, read_norm_stats
from export.checkpoint.orbax import open_orbax
from export.checkpoint.source import (
    LazyTensor,
    Source,
    check_action_width,
    geometry_of,
    open_safetensors,
    read_config,
    refuse_pi0,
    safetensors_files,
)
from export.params import CheckpointParams, InterfaceParams
from pi05_runtime.errors import CheckpointError

_PALIGEMMA = "paligemma_with_expert.paligemma."
_SIGLIP = f"{_PALIGEMMA}model.vision_tower."
PREFIXES = {
    f"{_SIGLIP}embeddings.patch_embedding.": "vision.patch_embedding.",
    f"{_SIGLIP}embeddings.position_embedding.": "vision.position_embedding.",
    f"{_SIGLIP}encoder.layers.": "vision.layers.",
    f"{_SIGLIP}post_layernorm.": "vision.post_layernorm.",
    f"{_PALIGEMMA}model.multi_modal_projector.linear.": "projector.",
    f"{_PALIGEMMA}model.language_model.embed_tokens.": "embedding.",
    f"{_PALIGEMMA}model.language_model.layers.": "prefix.layers.",
    "paligemma_with_expert.gemma_expert.model.layers.": "expert.layers.",
    "paligemma_with_expert.gemma_expert.model.norm.": "expert.norm.",
    "action_in_proj.": "action_in_proj.",
    "action_out_proj.": "action_out_proj.",
    "time_mlp_in.": "time_mlp_in.",
    "time_mlp_out.": "time_mlp_out.",
}
"""Module path -> canonical path, one to one."""

EMBEDDING_ALIAS = f"{_PALIGEMMA}lm_head.weight"
"""Where safetensors keeps the tied embedding table, unless embed_tokens is stored as well."""

UNUSED = {
    f"{_PALIGEMMA}model.language_model.norm.weight",
    "paligemma_with_expert.gemma_expert.lm_head.weight",
}
"""Stored by openpi, read by nothing: the prefix's output and the expert's token head."""


def canonical_name(name: str) -> str | None:
    """Canonical name of an openpi tensor, None if openpi itself never uses it.

    Unknown names come back as they are, so that the strict check can name them.
    """
    if name in UNUSED:
        return None
    if name == EMBEDDING_ALIAS:
        return "embedding.weight"
    # transformers 5.6 dropped this level of SigLIP's module.
    name = name.replace("vision_tower.vision_model.", "vision_tower.")
    for stored, canonical in PREFIXES.items():
        if name.startswith(stored):
            return canonical + name.removeprefix(stored)
    return name


def translate(stored: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Stored openpi names -> canonical names. Errors: CheckpointError for two names of one tensor."""
    if any(canonical_name(n) == "embedding.weight" and n != EMBEDDING_ALIAS for n in stored):
        stored = {n: t for n, t in stored.items() if n != EMBEDDING_ALIAS}
    tensors: dict[str, LazyTensor] = {}
    for name, tensor in stored.items():
        if (canonical := canonical_name(name)) in tensors:
            raise CheckpointError(f"{name}: {canonical} is stored under another name too; expected one")
        if canonical is not None:
            tensors[canonical] = tensor
    return tensors


def open_openpi(params: CheckpointParams) -> Source:
    """Opens the converted PyTorch directory `params.path`. Errors: CheckpointError."""
    directory = Path(params.path)
    stored = open_safetensors(safetensors_files(directory))
    refuse_pi0(stored, directory)
    return _source(directory, translate(stored), read_config(directory), params)


def open_openpi_jax(params: CheckpointParams) -> Source:
    """Opens the JAX Orbax directory `params.path`. Errors: CheckpointError."""
    directory = Path(params.path)
    tensors = {n: t for n, t in open_orbax(directory).items() if n != "prefix.norm.weight"}
    # openpi writes none here; a model of other sizes needs one, for its `geometry`.
    config = read_config(directory) if (directory / "config.json").exists() else {}
    return _source(directory, tensors, config, params)


def _source(
    directory: Path, tensors: dict[str, LazyTensor], config: dict[str, object], params: CheckpointParams
) -> Source:
    geometry = geometry_of(config, directory)
    check_action_width("action_dim", config.get("action_dim", geometry.action_width), geometry, directory)
    horizon = config.get("action_horizon")
    stated = InterfaceParams(horizon=horizon if isinstance(horizon, int) else None)
    normalization = read_norm_stats(find_norm_stats(directory, params.norm_stats), params.interface)
    return Source(tensors, geometry, stated, normalization)
