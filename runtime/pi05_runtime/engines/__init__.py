"""Backends that run a component set: one module a kind of engine, loaded only when asked for."""

from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from pi05_runtime.errors import EngineError
from pi05_runtime.geometry import Signature
from pi05_runtime.preprocess import Inputs
from pi05_runtime.tables import Schedule
from pi05_runtime.targets import find_target
from pi05_runtime.tensors import Floats

if TYPE_CHECKING:
    from pi05_runtime.engines.driver import Device
    from pi05_runtime.engines.program import Program


@dataclass(frozen=True)
class Decision:
    """actions: normalised, float32 [horizon, action width]. milliseconds: what was timed -> time."""

    actions: Floats
    milliseconds: dict[str, float]


class Engine(Protocol):
    """The components of one bundle on one target."""

    @property
    def takes_frames(self) -> bool:
        """Whether it wants camera frames as they are, and stages them itself."""
        ...

    def run(self, component: str, inputs: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, Floats]:
        """One component alone, as gates need it: arrays by port name, as its signature has them.

        Errors: EngineError if it fails or gives a number that is not finite.
        """
        ...

    def decide(self, inputs: Inputs, noise: Floats, schedule: Schedule) -> Decision:
        """Vision, prefill and all denoise steps. noise: [horizon, action width]. Errors as `run`."""
        ...

    def denoise(self, noise: Floats, schedule: Schedule) -> Decision:
        """The denoise steps alone, over keys and values of the last `decide`, as real-time chunking needs
        them. Errors as `run`, and EngineError before any `decide`."""
        ...

    def close(self) -> None:
        """Gives back what the engine holds of the device. It cannot be used afterwards."""
        ...


def open_engine(
    target: str,
    files: Mapping[str, Path],
    signatures: Mapping[str, Signature],
    choices: Mapping[str, Mapping[str, int]] = MappingProxyType({}),
) -> Engine:
    """Loads verified engine files (component, or `prefix` -> path).

    signatures: of all components and of `prefix`. choices: of a kernel plan's variants, network -> group of
    launches -> variant. Errors: TargetError, EngineError.
    """
    if find_target(target).engine == "ort":
        from pi05_runtime.engines.ort import OrtEngine

        return OrtEngine(files, signatures)
    from pi05_runtime.engines.driver import CudaDevice
    from pi05_runtime.engines.graph_engine import GraphEngine

    with ExitStack() as opened:
        device = opened.enter_context(closing(CudaDevice()))
        program = opened.enter_context(closing(open_program(target, files, signatures, device, choices)))
        engine = GraphEngine(device, program, signatures)
        opened.pop_all()
    return engine


def open_program(
    target: str,
    files: Mapping[str, Path],
    signatures: Mapping[str, Signature],
    device: "Device",
    choices: Mapping[str, Mapping[str, int]] = MappingProxyType({}),
) -> "Program":
    """The networks of a GPU's target, for whoever launches them; `open_engine` makes decisions of them.

    files, signatures, choices: as there. Errors: EngineError.
    """
    kind = find_target(target).engine
    if kind == "plan":
        from pi05_runtime.engines.plan import PlanProgram

        return PlanProgram(files, signatures, device, choices)
    from pi05_runtime.engines.tensorrt import TensorRTProgram

    return TensorRTProgram(kind, files, signatures, device)


def check_finite(component: str, outputs: Mapping[str, Floats]) -> None:
    """Errors: EngineError naming the first output that has a NaN or an infinity."""
    for name, output in outputs.items():
        if not (finite := np.isfinite(output)).all():
            raise EngineError(
                f"{component}: {name} has {np.count_nonzero(~finite)} non-finite numbers of {output.size}, "
                "none expected; do not act on this decision, and run `pi05 selftest` on this bundle"
            )


def no_cache() -> EngineError:
    """What `denoise` raises while there is no decision whose keys and values it could use."""
    return EngineError("denoise: no keys and values found, those of a decision expected; call `decide` first")
