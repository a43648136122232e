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
from export.component import component_inputs, component_signatures
from export.engine import EngineRecord
from export.params import Params
from export.stage import progress
from pi05_runtime.engines.ort import OrtEngine
from pi05_runtime.lock import Lock

TWIN = "fp32.onnx"


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A component's input for the fp32 twin: bf16 becomes fp32."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def build(target: str, component: str, lock: Lock, params: Params, out: Path) -> EngineRecord:
    """Opens and runs the twin once; nothing of its own goes to `out`. Errors: EngineError."""
    recipe = params.recipes(target, component)[0]
    twin = quantized_folder(component, recipe) / TWIN
    with progress(total=2, desc=f"engine {target} {component}", unit="step") as bar:
        engine = OrtEngine({component: twin}, {component: component_signatures()[component]})
        bar.update()
        sample = next(component_inputs(component))
        engine.run(component, {name: to_numpy(tensor) for name, tensor in sample.items()})
        bar.update()
    sha256 = hashlib.sha256(twin.read_bytes()).hexdigest()
    return EngineRecord(TWIN, sha256, "onnx", {component: recipe}, (TWIN, WEIGHTS), lock)
