"""Backends that run a component set: one module a kind of engine, loaded only when asked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pi05_runtime.errors import TargetError
from pi05_runtime.geometry import Signature
from pi05_runtime.preprocess import Inputs
from pi05_runtime.tables import Schedule
from pi05_runtime.targets import TARGETS
from pi05_runtime.tensors import Floats


@dataclass(frozen=True)
class Decision:
    """actions: normalised, float32 [horizon, action width]. milliseconds: component -> time."""

    actions: Floats
    milliseconds: dict[str, float]


class Engine(Protocol):
    """The components of one bundle on one target."""

    def run(self, component: str, inputs: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, Floats]:
        """One component alone, as gates need it: arrays by port name, as its signature has them.

        Errors: EngineError if it fails or gives a number that is not finite.
        """
        ...

    def decide(self, inputs: Inputs, noise: Floats, schedule: Schedule) -> Decision:
        """Vision, prefill and all denoise steps. noise: [horizon, action width]. Errors as `run`."""
        ...


def open_engine(target: str, files: Mapping[str, Path], signatures: Mapping[str, Signature]) -> Engine:
    """Loads verified engine files (component -> path). Errors: TargetError, EngineError."""
    if target not in TARGETS:
        raise TargetError(
            f"unknown target {target!r} found, one of {sorted(TARGETS)} expected; choose one of these, or "
            "update pi05-runtime"
        )
    from pi05_runtime.engines.ort import OrtEngine

    return OrtEngine(files, signatures)
