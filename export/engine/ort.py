"""cpu-ort: ONNX Runtime compiles when it loads, so its engine is the fp32 twin itself, proven here.

Proven means: a session opens with the robot's own options, its ports are the component's signature,
and one calibration input gives finite outputs.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from export.artifacts import WEIGHTS, quantized_folder
from export.component import component_inputs, component_signature
from export.engine import EngineRecord, Lock
from export.stage import progress
from pi05_runtime.engines.ort import OrtEngine

TWIN = "fp32.onnx"


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A component's input for the fp32 twin: bf16 becomes fp32."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def build(component: str, lock: Lock, out: Path) -> EngineRecord:
    """Opens and runs the twin once; nothing of its own goes to `out`. Errors: EngineError."""
    with progress(total=2, desc=f"engine cpu-ort {component}", unit="step") as bar:
        engine = OrtEngine(
            {component: quantized_folder(component) / TWIN}, {component: component_signature(component)}
        )
        bar.update()
        sample = next(component_inputs(component))
        engine.run(component, {name: to_numpy(tensor) for name, tensor in sample.items()})
        bar.update()
    sha256 = hashlib.sha256((quantized_folder(component) / TWIN).read_bytes()).hexdigest()
    return EngineRecord(TWIN, sha256, "onnx", (TWIN, WEIGHTS), {lock.library: lock.version})
