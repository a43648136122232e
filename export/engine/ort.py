"""cpu-ort: ONNX Runtime compiles when it loads, so its engine is the fp32 twin itself, proven here.

Proven means: a session opens with the robot's own options, its ports are the component's signature,
and one calibration input gives finite outputs.
"""

import numpy as np
import torch
from torch import Tensor

from export.calibrate import component_inputs
from export.checkpoint.canonical import read_description
from export.engine import EngineRecord, Lock
from export.graph import WEIGHTS
from export.quantize import folder as quantized_folder
from pi05_runtime.engines.ort import OrtEngine
from pi05_runtime.geometry import Signature, signature

TWIN = "fp32.onnx"


def component_signature(component: str) -> Signature:
    """The signature of a component of the current checkpoint."""
    d = read_description()
    return signature(component, d.geometry, len(d.interface.cameras), d.interface.horizon)


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A component's input for the fp32 twin: bf16 becomes fp32."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def prove(component: str, lock: Lock) -> EngineRecord:
    """Opens and runs the twin once. Errors: EngineError."""
    engine = OrtEngine(
        {component: quantized_folder(component) / TWIN}, {component: component_signature(component)}
    )
    sample = next(component_inputs(component))
    engine.run(component, {name: to_numpy(tensor) for name, tensor in sample.items()})
    return EngineRecord(TWIN, (TWIN, WEIGHTS), {lock.library: lock.version})
