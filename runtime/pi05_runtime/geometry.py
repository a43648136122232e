"""The sizes of a pi0.5, and the shapes of its three components that follow from them.

Nothing in the project knows a width as a constant: the real model, the demo and the golden model
of the tests differ only in the `Geometry` they carry.
"""

from collections.abc import Collection
from typing import Literal

import msgspec

COMPONENTS = ("vision", "prefill", "denoise")
PREFIX = "prefix"
"""Vision and prefill compiled as one network: an engine's option, not a fourth component."""
FUSED = {PREFIX: ("vision", "prefill")}


def decision_networks(available: Collection[str]) -> tuple[str, ...]:
    """What a decision runs, of the networks that a target has: `prefix` takes the place of its parts."""
    return (PREFIX, "denoise") if PREFIX in available else COMPONENTS


class Vision(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """SigLIP tower. `image_size` and `patch` in pixels, square."""

    image_size: int
    patch: int
    width: int
    depth: int
    heads: int
    mlp: int

    @property
    def tokens(self) -> int:
        """Image tokens of one camera."""
        return (self.image_size // self.patch) ** 2


class Stack(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A Gemma stack with `heads` query heads on one key/value head of `head_dim`."""

    width: int
    depth: int
    heads: int
    head_dim: int
    mlp: int


class Geometry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sizes that the weights fix. Prefix and expert share depth and head_dim (one joint cache)."""

    vision: Vision
    prefix: Stack
    expert: Stack
    vocabulary: int
    action_width: int = 32

    def __post_init__(self) -> None:
        if (self.prefix.depth, self.prefix.head_dim) != (self.expert.depth, self.expert.head_dim):
            raise ValueError(
                f"prefix and expert share one cache, but have depth {self.prefix.depth} and "
                f"{self.expert.depth}, head_dim {self.prefix.head_dim} and {self.expert.head_dim}"
            )
        if self.vision.image_size % self.vision.patch or self.vision.width % self.vision.heads:
            raise ValueError(
                f"image_size {self.vision.image_size} must be a multiple of patch {self.vision.patch}, "
                f"and vision width {self.vision.width} of heads {self.vision.heads}"
            )

    @property
    def modulations(self) -> int:
        """adaRMS norms of the expert: two a layer and the final one."""
        return 2 * self.expert.depth + 1


GEMMA = {
    "gemma_2b": Stack(width=2048, depth=18, heads=8, head_dim=256, mlp=16384),
    "gemma_300m": Stack(width=1024, depth=18, heads=8, head_dim=256, mlp=4096),
}
SIGLIP_SO400M = Vision(image_size=224, patch=14, width=1152, depth=27, heads=16, mlp=4304)
PI05 = Geometry(SIGLIP_SO400M, GEMMA["gemma_2b"], GEMMA["gemma_300m"], vocabulary=257152)


class Port(msgspec.Struct, frozen=True):
    """An input or output of a component.

    dtype `activation` is bf16 in engines and fp32 in the CPU twin. In `shape`, "prompt" is the
    prompt's bucket and "prefix" all image tokens plus that bucket.
    """

    name: str
    dtype: Literal["float32", "int32", "activation"]
    shape: tuple[int | str, ...]


class Signature(msgspec.Struct, frozen=True):
    """All ports of a component, in order."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def signatures(geometry: Geometry, views: int, horizon: int) -> dict[str, Signature]:
    """Names, dtypes and shapes of every component and of `prefix`: the contract between export, engines and
    runtime."""
    g = geometry
    size, depth, head_dim = g.vision.image_size, g.prefix.depth, g.prefix.head_dim
    tokens = Port("image_tokens", "activation", (views * g.vision.tokens, g.prefix.width))
    prompt = Port("prompt_embeddings", "activation", ("prompt", g.prefix.width))
    keys = Port("keys", "activation", (depth, "prefix", head_dim))
    values = Port("values", "activation", (depth, "prefix", head_dim))
    length = Port("prefix_length", "int32", ())
    x = Port("x", "float32", (horizon, g.action_width))
    modulation = Port("modulation", "float32", (g.modulations, 3 * g.expert.width))
    images = Port("images", "float32", (views, 3, size, size))
    return {
        "vision": Signature((images,), (tokens,)),
        "prefill": Signature((tokens, prompt, length), (keys, values)),
        "denoise": Signature(
            (x, modulation, Port("dt", "float32", ()), keys, values, length),
            (Port("x_next", "float32", x.shape),),
        ),
        PREFIX: Signature((images, prompt, length), (keys, values)),
    }


def fixed_shape(port: Port, prompt: int, image_tokens: int) -> tuple[int, ...]:
    """The port's shape once a prompt bucket is chosen. image_tokens: of all views together."""
    sizes = {"prompt": prompt, "prefix": image_tokens + prompt}
    return tuple(sizes[size] if isinstance(size, str) else size for size in port.shape)
