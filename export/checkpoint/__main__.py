"""Stage `checkpoint`: a published checkpoint in, canonical weights and policy.json out."""

import shutil
from pathlib import Path

import numpy as np

from export.artifacts import CHECKPOINT, TOKENIZER
from export.checkpoint.accept import resolve_interface, write_canonical
from export.checkpoint.canonical import Description
from export.checkpoint.lerobot import open_lerobot
from export.checkpoint.openpi import open_openpi, open_openpi_jax
from export.checkpoint.source import file_hashes
from export.params import load_params
from export.stage import run_stage
from pi05_runtime.errors import BundleError, CheckpointError
from pi05_runtime.geometry import Geometry
from pi05_runtime.interface import Interface
from pi05_runtime.preprocess.normalize import normalize_state, unnormalize_actions
from pi05_runtime.preprocess.prompt import Prompter
from pi05_runtime.staging import staged

OPENERS = {"openpi": open_openpi, "lerobot": open_lerobot, "orbax": open_openpi_jax}


def main() -> None:
    params = load_params().checkpoint
    directory, tokenizer = Path(params.path), Path(params.tokenizer)
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is not a directory: set checkpoint.path in params.yaml")
    if not tokenizer.is_file():
        raise CheckpointError(
            f"{tokenizer} not found: set checkpoint.tokenizer to PaliGemma's SentencePiece model "
            "(openpi caches it as paligemma_tokenizer.model)"
        )
    source = OPENERS[params.layout](params)
    interface = resolve_interface(source, params.interface)
    _check_on_robot(tokenizer, interface, source.geometry)
    description = Description(source.geometry, interface, params.layout, file_hashes(directory))
    with staged(CHECKPOINT) as folder:
        shutil.copyfile(tokenizer, folder / TOKENIZER)
        write_canonical(source, description, folder)
    views, prompt = interface.cameras, interface.prompt_format
    print(f"checkpoint: {params.layout} {directory}, cameras {list(views)}, prompt format {prompt}")


def _check_on_robot(tokenizer: Path, interface: Interface, geometry: Geometry) -> None:
    """Tokenizer and statistics through the robot's own code: what it would refuse stops here."""
    try:
        Prompter(tokenizer, interface, geometry.vocabulary, geometry.action_width)
        if interface.prompt_format != "plain":
            normalize_state(np.zeros(interface.state_dims), interface.normalization, interface.state_dims)
        actions = np.zeros((interface.horizon, geometry.action_width), np.float32)
        unnormalize_actions(actions, interface.normalization, interface.action_dims)
    except BundleError as error:
        raise CheckpointError(str(error)) from None


if __name__ == "__main__":
    run_stage(main)
