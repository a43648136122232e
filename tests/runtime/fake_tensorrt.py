"""A stand-in for the module `tensorrt` or `tensorrt_rtx`: engines are small JSON files, and every call to a
context is written down."""

import enum
import json
from pathlib import Path
from typing import Any

from pi05_runtime.geometry import Signature, fixed_shape

Tensor = dict[str, Any]


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self) -> None:
        self.initialized = True

    def log(self, severity: Severity, message: str) -> None:
        raise NotImplementedError


class Named(enum.Enum):
    @staticmethod
    def _generate_next_value_(name: str, *_: Any) -> str:
        return name


TensorIOMode = Named("TensorIOMode", ["INPUT", "OUTPUT"])
DataType = Named("DataType", ["FLOAT", "BF16", "HALF", "INT32"])
TensorLocation = Named("TensorLocation", ["DEVICE", "HOST"])
ExecutionContextAllocationStrategy = Named("ExecutionContextAllocationStrategy", ["STATIC", "USER_MANAGED"])
DynamicShapesKernelSpecializationStrategy = Named(
    "DynamicShapesKernelSpecializationStrategy", ["LAZY", "EAGER", "NONE"]
)
CudaGraphStrategy = Named("CudaGraphStrategy", ["DISABLED", "WHOLE_GRAPH_CAPTURE"])


class RuntimeConfig:
    cuda_graph_strategy: Any = None
    dynamic_shapes_kernel_specialization_strategy: Any = None
    allocation: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.allocation = strategy


class Library:
    """The module. refuse: names of calls that fail, with a line in the log."""

    ILogger = ILogger
    TensorIOMode, DataType, TensorLocation = TensorIOMode, DataType, TensorLocation
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    DynamicShapesKernelSpecializationStrategy = DynamicShapesKernelSpecializationStrategy
    CudaGraphStrategy = CudaGraphStrategy
    __version__ = "10.99.1.2"

    def __init__(self, rtx: bool) -> None:
        self.rtx = rtx
        self.refuse: set[str] = set()
        self.calls: list[tuple[Any, ...]] = []
        self.logger: Any = None

    def Runtime(self, logger: ILogger) -> "Runtime | None":
        assert logger.initialized
        self.logger = logger
        if "Runtime" in self.refuse:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return Runtime(self)

    def accepts(self, call: str, *arguments: Any) -> bool:
        self.calls.append((call, *arguments))
        if call in self.refuse:
            self.logger.log(ILogger.Severity.INFO, "nothing of interest")
            self.logger.log(ILogger.Severity.ERROR, f"{call} failed on purpose")
        return call not in self.refuse


class Runtime:
    def __init__(self, library: Library) -> None:
        self.library = library

    def deserialize_cuda_engine(self, plan: Any) -> "Engine | None":
        if not self.library.accepts("deserialize"):
            return None
        return Engine(self.library, json.loads(bytes(memoryview(plan))))


class Engine:
    def __init__(self, library: Library, description: dict[str, Any]) -> None:
        self.library, self.tensors = library, description["tensors"]
        self.profiles = description["profiles"]
        self.device_memory_size_v2 = description["memory"]
        self.num_io_tensors, self.num_optimization_profiles = len(self.tensors), len(self.profiles)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return TensorIOMode[self.tensors[name]["mode"]]

    def get_tensor_dtype(self, name: str) -> Any:
        return DataType[self.tensors[name]["dtype"]]

    def get_tensor_location(self, name: str) -> Any:
        return TensorLocation[self.tensors[name]["place"]]

    def get_tensor_shape(self, name: str) -> list[int]:
        return self.tensors[name]["shape"]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[list[int]]:
        assert -1 in self.tensors[name]["shape"], "a static tensor has no profile"
        return self.profiles[profile][name]

    def create_runtime_config(self) -> RuntimeConfig:
        assert self.library.rtx
        return RuntimeConfig()

    def create_execution_context(self, how: Any) -> "Context | None":
        if self.library.rtx:
            how = (how.allocation, how.dynamic_shapes_kernel_specialization_strategy, how.cuda_graph_strategy)
        return Context(self) if self.library.accepts("create_context", how) else None


class Context:
    def __init__(self, engine: Engine) -> None:
        self.library, self.engine = engine.library, engine
        self.profile = 0

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return self.library.accepts("profile", profile, stream)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        return self.library.accepts("shape", name, shape)

    def infer_shapes(self) -> list[str]:
        return [] if self.library.accepts("infer") else ["x"]

    def get_tensor_shape(self, name: str) -> list[int]:
        return self.engine.tensors[name]["inferred"][self.profile]

    def set_device_memory(self, memory: int, size: int) -> None:
        self.library.accepts("memory", memory, size)

    def is_stream_capturable(self, stream: int) -> bool:
        assert self.library.rtx
        return self.library.accepts("capturable", stream)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        return self.library.accepts("address", name, memory)

    def execute_async_v3(self, stream: int) -> bool:
        return self.library.accepts("execute", stream)


DTYPES = {"float32": "FLOAT", "activation": "BF16", "int32": "INT32"}


def describe(
    signature: Signature, buckets: list[int], image_tokens: int, memory: int = 512
) -> dict[str, Any]:
    """The engine that a right builder makes of a signature, with one profile a prompt bucket."""
    tensors: dict[str, Tensor] = {}
    profiles: list[dict[str, list[list[int]]]] = [{} for _ in buckets]
    for mode, ports in (("INPUT", signature.inputs), ("OUTPUT", signature.outputs)):
        for port in ports:
            tensors[port.name] = {
                "mode": mode,
                "dtype": DTYPES[port.dtype],
                "place": "DEVICE",
                "shape": [-1 if isinstance(s, str) else s for s in port.shape],
                "inferred": [fixed_shape(port, bucket, image_tokens) for bucket in buckets],
            }
            if mode == "INPUT" and -1 in tensors[port.name]["shape"]:
                for profile, shape in zip(profiles, tensors[port.name]["inferred"], strict=True):
                    profile[port.name] = [shape] * 3
    return {"tensors": tensors, "profiles": profiles, "memory": memory}


def write_engine(path: Path, description: dict[str, Any]) -> Path:
    path.write_text(json.dumps(description))
    return path
