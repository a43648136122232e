"""The instruction, and with it the state, as the token ids that pi0.5 was trained on.

pi0.5 has no other input for the state than numbers printed into its prompt, so one character of
difference here (a trailing space, a newline encoded on its own, padding) is a different observation.
Only the SentencePiece model of the checkpoint is needed, not the stack that trained it.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sentencepiece

from pi05_runtime.errors import BundleError, ObservationError
from pi05_runtime.interface import Interface

REMEMBERED = 16
"""Texts whose tokens are kept."""


def state_bins(state: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.int64]:
    """Bins of a normalised state, -1 below -1.0 and at most 255, of the same shape.

    Exactly `np.digitize(state, np.linspace(-1, 1, 257)[:-1]) - 1` of openpi: a product by 128 is
    exact in any float, and the clip keeps far values off the range of integers.
    """
    return np.floor(np.clip(state, -129 / 128, 127 / 128) * 128).astype(np.int64) + 128


class Prompter:
    """Turns a prompt and a normalised state into token ids, in the format of one policy."""

    def __init__(self, model: Path, interface: Interface, vocabulary: int, action_width: int) -> None:
        """Load the tokenizer.

        model: the SentencePiece file. vocabulary: rows of the embedding table. action_width: width to
        which the format `state-padded` pads the state.
        Raises BundleError for a file that is missing or no tokenizer, that has no BOS piece or more
        pieces than the embedding has rows, and for a state wider than its padding.
        """
        self._interface = interface
        self._action_width = action_width
        self._tokenizer = _load(model)
        # A robot asks with one instruction many times.
        self._encode = lru_cache(REMEMBERED)(self._encoded)
        pieces = self._tokenizer.get_piece_size()
        if self._tokenizer.bos_id() < 0:
            raise BundleError(
                f"tokenizer {model}: found no BOS piece, expected one; use the checkpoint's own tokenizer"
            )
        if pieces > vocabulary:
            raise BundleError(
                f"tokenizer {model}: found {pieces} pieces, expected at most the {vocabulary} rows of the "
                "embedding; use the checkpoint's own tokenizer"
            )
        if interface.prompt_format == "state-padded" and interface.state_dims > action_width:
            raise BundleError(
                f"interface: found {interface.state_dims} state dims, expected at most the {action_width} "
                "that the format 'state-padded' pads to; export the bundle again"
            )

    def ids(
        self, prompt: str, state_normalized: npt.NDArray[np.floating[Any]] | None
    ) -> npt.NDArray[np.int64]:
        """Token ids, BOS first, without padding: int64 [tokens], tokens <= max_prompt_tokens.

        state_normalized: [state_dims], any float dtype; ignored by the format `plain`.
        Raises ObservationError for a prompt that is empty, no text or too long (never truncated,
        unlike in training), and for a state that is missing, of another shape or not finite.
        Source: openpi `PaligemmaTokenizer.tokenize`; LeRobot 0.4 `processor_pi05` for `state-padded`.
        """
        text = _clean(prompt)
        if self._interface.prompt_format == "plain":
            found = self._encode(text, bos=True) + self._encode("\n", bos=False)
        else:
            numbers = " ".join(map(str, state_bins(self._printed(state_normalized))))
            found = self._encode(f"Task: {text}, State: {numbers};\nAction: ", bos=True)
        if len(found) > self._interface.max_prompt_tokens:
            raise ObservationError(
                f"prompt: found {len(found)} tokens, expected at most {self._interface.max_prompt_tokens}, "
                "with which the checkpoint was trained; shorten the instruction"
            )
        return np.asarray(found, dtype=np.int64)

    def _encoded(self, text: str, bos: bool) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_bos=bos))

    def _printed(self, state: npt.NDArray[np.floating[Any]] | None) -> npt.NDArray[np.floating[Any]]:
        """The numbers that the prompt prints: the state, zero-padded where the format says so."""
        dims = self._interface.state_dims
        if state is None or state.shape != (dims,) or not np.isfinite(state).all():
            found = "none" if state is None else f"shape {list(state.shape)}: {state}"
            raise ObservationError(
                f"normalised state: found {found}, expected {dims} finite numbers, which the prompt format "
                f"{self._interface.prompt_format!r} prints; pass the output of normalize_state"
            )
        if self._interface.prompt_format == "state":
            return state
        return np.pad(state, (0, self._action_width - dims))


def _load(model: Path) -> sentencepiece.SentencePieceProcessor:
    tokenizer = sentencepiece.SentencePieceProcessor()
    try:
        tokenizer.LoadFromSerializedProto(model.read_bytes())
    except (OSError, RuntimeError) as error:
        raise BundleError(
            f"tokenizer {model}: found no readable SentencePiece model ({error}), expected the checkpoint's "
            "tokenizer.model; export the bundle again or restore the file"
        ) from error
    return tokenizer


def _clean(prompt: object) -> str:
    if not isinstance(prompt, str):
        raise ObservationError(f"prompt: found {type(prompt).__name__}, expected str; pass the text itself")
    text = prompt.strip().replace("_", " ").replace("\n", " ")
    if not text.strip() or any("\ud800" <= character <= "\udfff" for character in text):
        raise ObservationError(
            f"prompt: found {prompt!r}, expected an instruction in valid Unicode; say what to do"
        )
    return text
