"""Targets: which chip and which kind of engine. Named `<chip>-<engine>`.

The list holds what this release can build and load; a name outside it is refused with this list.
"""

from collections.abc import Collection
from typing import Literal

import msgspec

from pi05_runtime.errors import TargetError

Recipe = Literal["bf16", "int8", "fp8", "nvfp4", "int4"]
RECIPES: tuple[Recipe, ...] = ("bf16", "int8", "fp8", "nvfp4", "int4")
"""From the finest to the coarsest: the whole loop is held to the coarsest of its components."""

EngineKind = Literal["ort", "tensorrt", "tensorrt_rtx", "plan"]
Library = Literal["onnxruntime", "tensorrt", "tensorrt_rtx", "triton"]


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """engine: the kind of engine, and with it what builds and loads it. library: the Python module that
    builds it. compute_capability: of the GPU, None for a CPU. recipes: those whose arithmetic chip and kind
    have."""

    engine: EngineKind
    library: Library
    compute_capability: str | None
    recipes: frozenset[Recipe]

    @property
    def needs_library(self) -> bool:
        """Whether `library` runs the engine too. A kernel plan needs the driver alone."""
        return self.engine != "plan"

    @property
    def from_onnx(self) -> bool:
        """Whether a device can build the engine itself, from the bundle's ONNX."""
        return self.engine in ("tensorrt", "tensorrt_rtx")


_BLACKWELL: frozenset[Recipe] = frozenset(RECIPES)
_SM89: frozenset[Recipe] = _BLACKWELL - {"nvfp4"}
_PLAN: frozenset[Recipe] = frozenset({"bf16", "fp8"})

TARGETS = {
    "cpu-ort": Target("ort", "onnxruntime", None, _BLACKWELL),
    "sm90-plan": Target("plan", "triton", "9.0", _PLAN),
    "sm110-plan": Target("plan", "triton", "11.0", _PLAN),
    "sm120-plan": Target("plan", "triton", "12.0", _PLAN),
    "sm110-trt": Target("tensorrt", "tensorrt", "11.0", _BLACKWELL),
    "sm89-rtx": Target("tensorrt_rtx", "tensorrt_rtx", "8.9", _SM89),
    "sm120-rtx": Target("tensorrt_rtx", "tensorrt_rtx", "12.0", _BLACKWELL),
}


def coarsest(recipes: Collection[str]) -> Recipe:
    """The coarsest of `recipes`: what a whole loop is held to."""
    return RECIPES[max(i for i, recipe in enumerate(RECIPES) if recipe in recipes)]


def find_target(name: str) -> Target:
    """The target called `name`. Errors: TargetError listing those that this release knows."""
    if name not in TARGETS:
        raise TargetError(
            f"unknown target {name!r} found, one of {sorted(TARGETS)} expected; choose one of these, or "
            "update pi05-runtime"
        )
    return TARGETS[name]
