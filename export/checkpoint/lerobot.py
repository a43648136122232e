"""LeRobot's policy directory: config.json, model.safetensors and the processors' statistics.

The weights carry openpi's names, behind a `model.` where LeRobot's trainer saved them. Normalisation
modes differ between published repositories (some pi05 checkpoints are z-score), so they are read from
config.json's mapping, and statistics from the (un)normaliser steps whose file index varies.
"""

import math
import re
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from safetensors import SafetensorError
from safetensors.torch import load_file

from export.checkpoint.openpi import translate
from export.checkpoint.source import (
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
from pi05_runtime.geometry import Geometry
from pi05_runtime.interface import Normalization, NormalizationMode, Statistics

IMAGES = "observation.images."
MASKED = re.compile(rf"{re.escape(IMAGES)}empty_camera_\d+")
"""LeRobot's own features for its `empty_cameras`: slots that no robot fills and attention never sees."""

MODES: dict[str, NormalizationMode] = {"QUANTILES": "quantile", "MEAN_STD": "zscore"}


class _Feature(msgspec.Struct):
    type: Literal["VISUAL", "STATE", "ACTION"]
    shape: Annotated[tuple[int, ...], msgspec.Meta(min_length=1)]


class _Config(msgspec.Struct):
    type: str
    chunk_size: int
    max_action_dim: int
    tokenizer_max_length: int
    input_features: dict[str, _Feature]
    output_features: dict[str, _Feature]
    normalization_mapping: dict[str, str]
    use_relative_actions: bool = False
    image_resolution: tuple[int, int] | None = None


def open_lerobot(params: CheckpointParams) -> Source:
    """Opens the directory `params.path`. Errors: CheckpointError."""
    directory = Path(params.path)
    config = _read(directory)
    stored = open_safetensors(safetensors_files(directory))
    if all(name.startswith("model.") for name in stored):
        stored = {name.removeprefix("model."): tensor for name, tensor in stored.items()}
    refuse_pi0(stored, directory)
    state = [f for f in config.input_features.values() if f.type == "STATE"]
    action = config.output_features.get("action")
    if len(state) != 1 or action is None:
        raise CheckpointError(
            f"{directory}/config.json: expected one STATE input and an `action` output, found "
            f"{sorted(config.input_features)} and {sorted(config.output_features)}"
        )
    geometry = geometry_of(read_config(directory), directory)
    check_action_width("max_action_dim", config.max_action_dim, geometry, directory)
    _check_resolution(config, geometry, directory)
    cameras = [n for n, f in config.input_features.items() if f.type == "VISUAL" and not MASKED.fullmatch(n)]
    stated = InterfaceParams(
        cameras=tuple(name.removeprefix(IMAGES) for name in cameras) or None,
        state_dims=state[0].shape[0],
        action_dims=action.shape[0],
        horizon=config.chunk_size,
        max_prompt_tokens=config.tokenizer_max_length,
    )
    normalization = Normalization(
        state_mode=_mode(config, "STATE", directory),
        action_mode=_mode(config, "ACTION", directory),
        state=_statistics(directory, "policy_preprocessor", "normalizer", "observation.state"),
        actions=_statistics(directory, "policy_postprocessor", "unnormalizer", "action"),
        convention="lerobot",
    )
    return Source(translate(stored), geometry, stated, normalization)


def _read(directory: Path) -> _Config:
    raw = read_config(directory)
    if (kind := raw.get("type")) != "pi05":
        raise CheckpointError(
            f"{directory}/config.json: this is a {kind or 'nameless'} checkpoint, expected LeRobot type "
            "`pi05`; name a pi05 policy, or set checkpoint.layout to what the directory is"
        )
    try:
        config = msgspec.convert(raw, _Config)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{directory}/config.json: {error}") from None
    if config.use_relative_actions:
        raise CheckpointError(
            f"{directory}/config.json: use_relative_actions is true; relative actions need the robot's "
            "pose at the time of the chunk and are not supported: convert them on the robot's side"
        )
    if (visual := config.normalization_mapping.get("VISUAL", "IDENTITY")) != "IDENTITY":
        raise CheckpointError(
            f"{directory}/config.json: normalization_mapping.VISUAL is {visual}, IDENTITY expected: pi0.5 "
            "takes images in [-1, 1], and this policy was trained on others"
        )
    return config


def _check_resolution(config: _Config, geometry: Geometry, directory: Path) -> None:
    size = geometry.vision.image_size
    if config.image_resolution not in (None, (size, size)):
        raise CheckpointError(
            f"{directory}/config.json: image_resolution {config.image_resolution} found, {(size, size)} "
            "expected by the vision tower; the policy needs a `geometry` of its own, or another checkpoint"
        )


def _mode(config: _Config, feature: str, directory: Path) -> NormalizationMode:
    found = config.normalization_mapping.get(feature)
    if found not in MODES:
        raise CheckpointError(
            f"{directory}/config.json: normalization_mapping.{feature} is {found}, expected {sorted(MODES)}"
        )
    return MODES[found]


def _statistics(directory: Path, processor: str, step: str, feature: str) -> Statistics:
    pattern = f"{processor}_step_*_{step}_processor.safetensors"
    found = sorted(directory.glob(pattern))
    if len(found) != 1:
        raise CheckpointError(
            f"{directory}: expected one {pattern}, found {[p.name for p in found]}; "
            "the statistics belong to the policy: download the whole repository"
        )
    try:
        stored = load_file(found[0])
    except SafetensorError as error:
        raise CheckpointError(f"{found[0]} cannot be read ({error}): download it again") from None
    read = {
        name: tuple(stored[f"{feature}.{name}"].double().flatten().tolist())
        for name in ("mean", "std", "q01", "q99")
        if f"{feature}.{name}" in stored
    }
    if not read:
        raise CheckpointError(f"{found[0]}: no statistics of {feature}, found {sorted(stored)[:8]}")
    if wrong := [name for name, values in read.items() if not all(map(math.isfinite, values))]:
        raise CheckpointError(f"{found[0]}: {feature} has NaN or infinity in {wrong}; compute them again")
    return Statistics(**read)
