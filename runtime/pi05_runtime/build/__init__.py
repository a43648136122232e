"""TensorRT engines from a component's ONNX: in the runtime, so that a device can build its own.

One builder serves `tensorrt` on a device and `tensorrt_rtx` on any machine. The library runs in a process
of its own (worker.py), because compilers of this kind crash and hang; what to try next is decided here
(ladder.py), and no engine counts as built before its own layers show the planned precisions (evidence.py).
"""

from pi05_runtime.build.contract import Attempt, BuildOptions, Built
from pi05_runtime.build.ladder import build_engine
from pi05_runtime.build.rungs import LEVELS

__all__ = ["LEVELS", "Attempt", "BuildOptions", "Built", "build_engine"]
