"""ONNX Runtime on the CPU: the embedded default, and the numeric check of the very ONNX that other
engines are built from."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pi05_runtime.engines import Decision, Floats
from pi05_runtime.errors import EngineError, TargetError
from pi05_runtime.geometry import Signature
from pi05_runtime.preprocess import Inputs
from pi05_runtime.tables import Schedule

if TYPE_CHECKING:
    import onnxruntime

DTYPES = {"float32": "tensor(float)", "activation": "tensor(float)", "int32": "tensor(int32)"}


class OrtEngine:
    def __init__(self, files: Mapping[str, Path], signatures: Mapping[str, Signature]) -> None:
        """Opens a session a component and holds it to its signature. Errors: EngineError."""
        self._sessions = {name: open_session(path) for name, path in files.items()}
        for name, session in self._sessions.items():
            _check_signature(name, session, signatures[name])

    def run(self, component: str, inputs: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, Floats]:
        session = self._sessions[component]
        names = [output.name for output in session.get_outputs()]
        try:
            outputs: list[Floats] = session.run(names, dict(inputs))
        except Exception as error:  # onnxruntime raises many types of its own
            raise EngineError(f"{component}: ONNX Runtime failed: {error}") from error
        for name, output in zip(names, outputs, strict=True):
            if not np.isfinite(output).all():
                raise EngineError(
                    f"{component}: {name} has {int((~np.isfinite(output)).sum())} NaN or infinite values; "
                    "do not act on this decision; check the observation, then the bundle's gates"
                )
        return dict(zip(names, outputs, strict=True))

    def decide(self, inputs: Inputs, noise: Floats, schedule: Schedule) -> Decision:
        marks = [time.perf_counter()]
        vision = self.run("vision", {"images": inputs.images})
        marks.append(time.perf_counter())
        length = np.asarray(inputs.prefix_length, np.int32)
        prompt = {"prompt_embeddings": inputs.prompt_embeddings, "prefix_length": length}
        cache = self.run("prefill", vision | prompt)
        marks.append(time.perf_counter())
        x, fixed = noise, cache | {"prefix_length": length, "dt": np.asarray(schedule.dt)}
        for modulation in schedule.modulation:
            x = self.run("denoise", fixed | {"x": x, "modulation": modulation})["x_next"]
        marks.append(time.perf_counter())
        spent = np.diff(marks) * 1e3
        return Decision(x, dict(zip(("vision", "prefill", "denoise"), spent.tolist(), strict=True)))


def open_session(path: Path) -> "onnxruntime.InferenceSession":
    """A session with QDQ rewriting off: ORT re-inserts some quantizers with the wrong type."""
    try:
        import onnxruntime
    except ImportError:
        raise TargetError(
            "target cpu-ort needs onnxruntime, which is not installed: pip install 'pi05-runtime[ort]'"
        ) from None
    options: Any = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises many types of its own
        raise EngineError(
            f"{path}: ONNX Runtime {onnxruntime.__version__} cannot load it: {error}"
        ) from error


def _check_signature(name: str, session: "onnxruntime.InferenceSession", expected: Signature) -> None:
    for kind, found, ports in (
        ("inputs", session.get_inputs(), expected.inputs),
        ("outputs", session.get_outputs(), expected.outputs),
    ):
        has: list[Any] = [(p.name, p.type, _sizes(p.shape)) for p in found]
        wants: list[Any] = [(p.name, DTYPES[p.dtype], _sizes(p.shape)) for p in ports]
        if has != wants:
            raise EngineError(f"{name}: {kind} {has} found, {wants} expected; build the engine again")


def _sizes(shape: Any) -> list[int | None]:
    """Symbolic dimensions as None: their names are the exporter's."""
    return [size if isinstance(size, int) else None for size in shape]
