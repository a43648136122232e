"""ONNX Runtime on the CPU: the embedded default, and the numeric check of the very ONNX that other
engines are built from."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pi05_runtime.engines import Decision, check_finite, no_cache
from pi05_runtime.engines.library import load_library
from pi05_runtime.errors import EngineError
from pi05_runtime.geometry import Signature
from pi05_runtime.preprocess import Inputs
from pi05_runtime.tables import Schedule
from pi05_runtime.tensors import Floats

FOLDED_BYTES = str(32 << 20)
"""Larger weights are dequantized as they are used: folded, a real NVFP4 prefill would take 30 GB."""
DTYPES = {"float32": "tensor(float)", "activation": "tensor(float)", "int32": "tensor(int32)"}


class SessionPort(Protocol):
    """An input or output as ONNX Runtime describes it; a symbolic dimension is a str or None."""

    name: str
    type: str
    shape: Sequence[int | str | None]


class Session(Protocol):
    """The part of onnxruntime.InferenceSession that is used; its library has no types."""

    def get_inputs(self) -> Sequence[SessionPort]: ...

    def get_outputs(self) -> Sequence[SessionPort]: ...

    def run(
        self, output_names: Sequence[str], input_feed: Mapping[str, npt.NDArray[np.generic]], /
    ) -> Sequence[Floats]: ...


class OrtEngine:
    """An Engine of one ONNX Runtime session a component."""

    def __init__(self, files: Mapping[str, Path], signatures: Mapping[str, Signature]) -> None:
        """Opens a session a component and holds it to its signature. Errors: EngineError."""
        self._sessions = {name: open_session(path) for name, path in files.items()}
        for name, session in self._sessions.items():
            _check_signature(name, session, signatures[name])
        self._cache: Mapping[str, npt.NDArray[np.generic]] | None = None

    @property
    def takes_frames(self) -> bool:
        return False

    def run(self, component: str, inputs: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, Floats]:
        session = self._sessions[component]
        names = [output.name for output in session.get_outputs()]
        try:
            outputs = session.run(names, dict(inputs))
        except Exception as error:  # onnxruntime raises many types of its own
            raise EngineError(
                f"{component}: ONNX Runtime failed: {error}; run `pi05 selftest` on this bundle"
            ) from error
        named = dict(zip(names, outputs, strict=True))
        check_finite(component, named)
        return named

    def decide(self, inputs: Inputs, noise: Floats, schedule: Schedule) -> Decision:
        self._cache = None
        # What cannot be read is refused before anything is computed.
        length = np.asarray(inputs.prompt.prefix_length, np.int32)
        prompt = {"prompt_embeddings": inputs.prompt.embeddings, "prefix_length": length}
        marks = [time.perf_counter()]
        vision = self.run("vision", {"images": inputs.images})
        marks.append(time.perf_counter())
        self._cache = self.run("prefill", vision | prompt) | {"prefix_length": length}
        marks.append(time.perf_counter())
        steps = self.denoise(noise, schedule)
        vision_ms, prefill_ms = (np.diff(marks) * 1e3).tolist()
        return Decision(steps.actions, {"vision": vision_ms, "prefill": prefill_ms} | steps.milliseconds)

    def denoise(self, noise: Floats, schedule: Schedule) -> Decision:
        if self._cache is None:
            raise no_cache()
        start = time.perf_counter()
        x, fixed = noise, dict(self._cache) | {"dt": np.asarray(schedule.dt)}
        for modulation in schedule.modulation:
            x = self.run("denoise", fixed | {"x": x, "modulation": modulation})["x_next"]
        return Decision(x, {"denoise": (time.perf_counter() - start) * 1e3})

    def close(self) -> None:
        self._sessions, self._cache = {}, None


def open_session(path: Path) -> Session:
    """A session with QDQ rewriting off: ORT re-inserts some quantizers with the wrong type.

    Errors: TargetError without ONNX Runtime on this machine, EngineError for a file it cannot load.
    """
    onnxruntime = load_library("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_session_config_entry("optimization.constant_folding_max_output_size_in_bytes", FOLDED_BYTES)
    # Threads of a session that is done would keep the cores from the next one, and from other programs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises many types of its own
        raise EngineError(
            f"{path}: ONNX Runtime {onnxruntime.__version__} cannot load it ({error}); install the version "
            "in the manifest's `built_with`, or export the bundle again"
        ) from error


def _check_signature(name: str, session: Session, expected: Signature) -> None:
    for kind, found, ports in (
        ("inputs", session.get_inputs(), expected.inputs),
        ("outputs", session.get_outputs(), expected.outputs),
    ):
        has = [(p.name, p.type, _sizes(p.shape)) for p in found]
        wants = [(p.name, DTYPES[p.dtype], _sizes(p.shape)) for p in ports]
        if has != wants:
            raise EngineError(f"{name}: {kind} {has} found, {wants} expected; build the engine again")


def _sizes(shape: Sequence[int | str | None]) -> list[int | None]:
    """Symbolic dimensions as None: their names are the exporter's."""
    return [size if isinstance(size, int) else None for size in shape]
