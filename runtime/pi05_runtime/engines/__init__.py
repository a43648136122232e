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

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Decision:
    """actions: normalised, float32 [horizon, action width]. milliseconds: component -> time."""

    actions: Floats
    milliseconds: dict[str, float]


class Engine(Protocol):
    """The components of one bundle on one target."""

    def run(self, component: str, inputs: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, Floats]:
        """One component alone, as gates and self-tests need it."""
        ...

    def decide(self, inputs: Inputs, noise: Floats, schedule: Schedule) -> Decision:
        """Vision, prefill and all denoise steps."""
        ...


def open_engine(target: str, files: Mapping[str, Path], signatures: Mapping[str, Signature]) -> Engine:
    """Loads verified engine files (component -> path). Errors: TargetError, EngineError."""
    if target not in TARGETS:
        raise TargetError(f"unknown target {target!r}; this runtime loads {sorted(TARGETS)}")
    from pi05_runtime.engines.ort import OrtEngine

    return OrtEngine(files, signatures)
