"""From a robot's observation to what an engine takes.

The pipeline calibrates and judges engines through this very code, so what a robot sends is treated
exactly as what the engines were made for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pi05_runtime.bf16 import from_bf16
from pi05_runtime.errors import ObservationError
from pi05_runtime.geometry import Geometry
from pi05_runtime.interface import Interface
from pi05_runtime.preprocess.images import read_frames, stage_images
from pi05_runtime.preprocess.normalize import normalize_state
from pi05_runtime.preprocess.prompt import Prompter
from pi05_runtime.tables import TokenEmbedding
from pi05_runtime.tensors import Floats


@dataclass(frozen=True)
class Prompt:
    """token_ids int64 [tokens], rows of `embedding`; bucket: prompt tokens that the engine is made for;
    prefix_length: image and prompt tokens."""

    token_ids: npt.NDArray[np.int64]
    embedding: TokenEmbedding
    bucket: int
    prefix_length: int

    @property
    def embeddings(self) -> Floats:
        """float32 [bucket, width], zero beyond the prompt."""
        bits = np.zeros((self.bucket, self.embedding.width), np.uint16)
        self.embedding.write(self.token_ids, bits[: len(self.token_ids)])
        return from_bf16(bits)


@dataclass
class Inputs:
    """images float32 [views, 3, size, size] in [-1, 1]. read_prompt: what `prompt` comes from. frames: uint8
    [height, width, 3] of each camera, for an engine that stages them itself; there are no `images` then."""

    images: Floats
    read_prompt: Callable[[], Prompt]
    frames: tuple[npt.NDArray[np.uint8], ...] = ()

    @cached_property
    def prompt(self) -> Prompt:
        """Read when it is first asked for, so that a device may look at the images meanwhile.

        Errors: ObservationError for a prompt or a state.
        """
        return self.read_prompt()


class Preprocessor:
    """Stages images, normalises the state, and embeds the prompt in the smallest bucket that holds it."""

    def __init__(
        self,
        geometry: Geometry,
        interface: Interface,
        buckets: Sequence[int],
        tokenizer: Path,
        embedding: TokenEmbedding,
        keep_frames: bool = False,
    ) -> None:
        """buckets: prompt lengths of the engines, ascending. tokenizer: the SentencePiece file. keep_frames:
        leave images to the engine.

        Errors: BundleError for a tokenizer that does not fit.
        """
        self._geometry, self._interface = geometry, interface
        self._buckets, self._embedding, self._keep_frames = buckets, embedding, keep_frames
        self._prompter = Prompter(tokenizer, interface, geometry.vocabulary, geometry.action_width)

    def __call__(self, observation: Mapping[str, Any]) -> Inputs:
        """observation: `images` {camera: uint8 HWC}, `state` [state_dims], `prompt` str.

        `state` may be left out where the prompt format is `plain`. Errors: ObservationError, of prompt and
        state when the prompt is asked for.
        """
        self._check(observation)
        images, frames = self._views(observation["images"])
        return Inputs(images, partial(self._prompt, observation["prompt"], observation.get("state")), frames)

    def _prompt(self, text: Any, state: Any) -> Prompt:
        ids = self._prompter.ids(text, self._state(state))
        bucket = next((b for b in self._buckets if b >= len(ids)), None)
        if bucket is None:
            raise ObservationError(
                f"prompt: {len(ids)} tokens found, the engines were built for at most {self._buckets[-1]}; "
                "shorten the instruction, or export with a larger prompt bucket"
            )
        tokens = len(self._interface.cameras) * self._geometry.vision.tokens
        return Prompt(ids, self._embedding, bucket, tokens + len(ids))

    def _views(self, given: Mapping[str, npt.ArrayLike]) -> tuple[Floats, tuple[npt.NDArray[np.uint8], ...]]:
        """(images, frames), of which one is empty."""
        size, cameras = self._geometry.vision.image_size, self._interface.cameras
        if self._keep_frames:
            return np.empty((0, 3, size, size), np.float32), read_frames(given, cameras)
        return stage_images(given, cameras, size, self._interface.image_convention), ()

    def _check(self, observation: Mapping[str, Any]) -> None:
        if not isinstance(observation, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ObservationError(
                f"observation: {type(observation).__name__} found, a mapping with `images`, `state` and "
                "`prompt` expected"
            )
        allowed = {"images", "state", "prompt", "noise"}
        required = {"images", "prompt"}
        if self._interface.prompt_format != "plain":
            required.add("state")
        missing, unknown = required - observation.keys(), observation.keys() - allowed
        if missing or unknown:
            raise ObservationError(
                f"observation: missing {sorted(missing)}, unknown {sorted(unknown)}; found "
                f"{sorted(observation)}, expected {sorted(required)} and optionally "
                f"{sorted(allowed - required)}; pass exactly these keys"
            )
        if not isinstance(observation["images"], Mapping):
            raise ObservationError(
                f"images: found {type(observation['images']).__name__}, expected a mapping of camera to "
                f"image; pass one image under each of {list(self._interface.cameras)}"
            )

    def _state(self, given: Any) -> Floats | None:
        if self._interface.prompt_format == "plain":
            return None
        return normalize_state(given, self._interface.normalization, self._interface.state_dims)
