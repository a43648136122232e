"""What a policy expects from a robot and gives back: cameras, prompt, state, actions.

These conventions are not in the weights, and every one of them has taken a success rate to zero
somewhere. They are therefore explicit fields of the bundle, with no defaults for the ones that
differ between published checkpoints.
"""

from typing import Literal

import msgspec

PromptFormat = Literal["state", "state-padded", "plain"]
"""`state`: "Task: ..., State: 1 2 3;\\nAction: " with the real state dims. `state-padded`: the same
with the state zero-padded to the action width first (LeRobot 0.4). `plain`: the text and a newline,
no state (openpi's pi05_libero)."""

NormalizationMode = Literal["quantile", "zscore"]

Convention = Literal["openpi", "lerobot"]
"""Whose arithmetic: openpi resizes images with antialias and has an epsilon of 1e-6 in every
normalisation; LeRobot resizes without antialias and has 1e-8 in z-score and none in quantile."""


class Statistics(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Per-dimension statistics; `quantile` needs q01 and q99, `zscore` mean and std."""

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    q01: tuple[float, ...] = ()
    q99: tuple[float, ...] = ()


class Normalization(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How state goes in and actions come out. LeRobot may mix modes, so each has its own."""

    state_mode: NormalizationMode
    action_mode: NormalizationMode
    state: Statistics
    actions: Statistics
    convention: Convention


class Interface(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The policy as a robot sees it.

    cameras: names of the live cameras in the order of the image tokens (masked slots left out).
    state_dims, action_dims: real widths, before padding. horizon: actions in a chunk.
    max_prompt_tokens: what the checkpoint was trained with; a longer prompt is refused.
    """

    cameras: tuple[str, ...]
    prompt_format: PromptFormat
    state_dims: int
    action_dims: int
    horizon: int
    max_prompt_tokens: int
    image_convention: Convention
    normalization: Normalization
