"""The pipeline's BF16 reference as a policy: the model that every gate is held to, in the robot's units."""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from export.checkpoint.canonical import read_description
from export.observations import preprocessor
from export.params import Params
from pi05_runtime.geometry import Geometry
from pi05_runtime.interface import Interface
from pi05_runtime.preprocess.normalize import unnormalize_actions
from validate.reference import load_reference


class Described(NamedTuple):
    """What a server tells of it, as a bundle's manifest would."""

    name: str
    version: str
    geometry: Geometry
    interface: Interface


class ReferencePolicy:
    """What `pi05_runtime.policy.Policy` is of a bundle."""

    recipes = frozenset({"bf16"})

    def __init__(self, params: Params) -> None:
        """Errors: ArtifactError without a checkpoint."""
        description = read_description()
        self.steps, self.identity = params.export.default_steps, dict[str, str]()
        self.manifest = Described("reference", "bf16", description.geometry, description.interface)
        self._prepare = preprocessor(params)
        self._model = load_reference(description, params, bf16=True)

    @torch.no_grad()
    def infer(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """As `Policy.infer`, with noise. Errors: ObservationError."""
        start = time.perf_counter()
        inputs, model = self._prepare(observation), self._model
        noise = torch.from_numpy(np.array(observation["noise"], np.float32))
        image_tokens = model.embed_images(torch.from_numpy(inputs.images)).flatten(0, 1)
        prompt = model.embed_prompt(torch.from_numpy(inputs.prompt.token_ids))
        prefix = torch.cat([image_tokens.to(prompt.dtype), prompt])[None]
        valid = torch.ones(prefix.shape[:2], dtype=torch.bool)
        cache = model.prefill(prefix, valid)
        actions = model.sample(noise[None], cache, valid, self.steps, "openpi")[0].numpy()
        interface = self.manifest.interface
        actions = unnormalize_actions(actions, interface.normalization, interface.action_dims)
        return {"actions": actions, "timings": {"total": (time.perf_counter() - start) * 1e3}}
