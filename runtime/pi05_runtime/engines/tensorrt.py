"""TensorRT engines, of the library itself or of TensorRT for RTX, as networks that can be launched.

The two libraries share one Python interface. What they refuse they say in their log and not in an
exception, so the log's warnings and errors become the text of ours.
"""

import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from pi05_runtime.engines.driver import Device, compute_capability
from pi05_runtime.engines.library import load_library
from pi05_runtime.engines.program import Shapes
from pi05_runtime.errors import EngineError
from pi05_runtime.geometry import Signature

DTYPES = {"float32": "FLOAT", "activation": "BF16", "int32": "INT32"}
REBUILD = "run `pi05 rebuild` on this bundle"
KEPT_MESSAGES = 5


class Log:
    """What a library has warned of, for the next error's text. handler: its logger, which fills this."""

    def __init__(self, trt: Any) -> None:
        self._messages: deque[str] = deque(maxlen=KEPT_MESSAGES)
        self._lock = threading.Lock()
        severity = trt.ILogger.Severity
        loud = {severity.INTERNAL_ERROR, severity.ERROR, severity.WARNING}

        def log(handler: Any, level: Any, message: str) -> None:
            if level in loud:
                with self._lock:  # the library logs from threads of its own
                    self._messages.append(message.strip())

        def initialize(handler: Any) -> None:
            trt.ILogger.__init__(handler)

        self.handler = type("Handler", (trt.ILogger,), {"__init__": initialize, "log": log})()

    def take(self) -> str:
        """The last messages, which are then forgotten."""
        with self._lock:
            messages = "; ".join(self._messages) or "its log is empty"
            self._messages.clear()
        return messages


class TensorRTProgram:
    """A Program of one TensorRT engine a network. All contexts share one scratch memory, because the one
    stream that they are launched on runs them one after another."""

    def __init__(
        self,
        library: str,
        files: Mapping[str, Path],
        signatures: Mapping[str, Signature],
        device: Device,
    ) -> None:
        """Loads each file and holds it to its signature.

        Errors: TargetError without the library, EngineError for a file that is not that network, or that
        another version or GPU was meant for.
        """
        self._library, self._trt = library, load_library(library)
        self._log = Log(self._trt)
        self._runtime: Any = self._made(lambda: self._trt.Runtime(self._log.handler), "a runtime")
        self._engines: dict[str, Any] = {}
        self._names: dict[str, dict[str, str]] = {}
        for network, path in files.items():
            engine = self._engines[network] = self._load(path)
            self._names[network] = tensor_names(engine, network, signatures[network])
        self._signatures = signatures
        self._held = ExitStack()
        self._scratch_size = max((int(e.device_memory_size_v2) for e in self._engines.values()), default=0)
        # A size of 0 is possible; an address of 0 would ask the library to allocate.
        self._scratch = device.alloc(max(self._scratch_size, 1))
        self._held.callback(device.free, self._scratch)

    @property
    def networks(self) -> Collection[str]:
        return self._engines.keys()

    @property
    def stager(self) -> None:
        """TensorRT has no part in what comes before its engines."""
        return None

    def bind_overlapped(
        self, networks: tuple[str, str], shapes: tuple[Shapes, Shapes], stream: int, beside: int
    ) -> None:
        """An engine gives its results when it has ended."""
        return None

    def bind(self, network: str, shapes: Shapes, stream: int) -> "TensorRTLaunch":
        """An execution context at these shapes. Errors: EngineError if no optimisation profile has them."""
        if network not in self._engines:
            raise EngineError(f"{network}: networks {sorted(self._engines)} found; load the whole bundle")
        engine, names = self._engines[network], self._names[network]
        inputs = {names[p.name]: tuple(shapes[p.name]) for p in self._signatures[network].inputs}
        outputs = {names[p.name]: tuple(shapes[p.name]) for p in self._signatures[network].outputs}
        profile = find_profile(engine, network, inputs)
        context: Any = self._made(lambda: self._context(engine), f"a context for {network}")
        self._check(context.set_optimization_profile_async(profile, stream), network, f"profile {profile}")
        for name, shape in inputs.items():
            self._check(context.set_input_shape(name, shape), network, f"{name} of shape {list(shape)}")
        missing: list[str] = self._made(lambda: context.infer_shapes(), f"the shapes of {network}")
        self._check(not missing, network, f"inputs without {missing}")
        for name, shape in outputs.items():
            if (found := tuple(context.get_tensor_shape(name))) != shape:
                raise EngineError(
                    f"{network}: {name} of shape {list(found)} found, {list(shape)} expected; {REBUILD}"
                )
        context.set_device_memory(self._scratch, self._scratch_size)
        if self._library == "tensorrt_rtx":
            self._check(context.is_stream_capturable(stream), network, "capture on its stream")
        return TensorRTLaunch(context, names, self._log, network)

    def close(self) -> None:
        self._engines.clear()
        self._runtime = None
        self._held.close()

    def _load(self, path: Path) -> Any:
        if path.stat().st_size == 0:
            raise EngineError(f"{path}: an empty file found, an engine expected; {REBUILD}")
        # Mapped, because a copy of gigabytes would be held beside the engine's own.
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as plan:
            engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(
                f"{path}: {self._library} {self._trt.__version__} on a GPU of compute capability "
                f"{compute_capability()} cannot load it ({self._log.take()}), an engine made by this version "
                f"for this GPU expected; {REBUILD}"
            )
        return engine

    def _context(self, engine: Any) -> Any:
        trt, memory = self._trt, self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._library == "tensorrt":
            return engine.create_execution_context(memory)
        # RTX compiles kernels on this machine. Compiled lazily, they would replace those that a graph has
        # captured, and a graph of its own would be in the way of ours.
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(memory)
        config.dynamic_shapes_kernel_specialization_strategy = (
            trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
        return engine.create_execution_context(config)

    def _made(self, make: Callable[[], Any], what: str) -> Any:
        """What `make()` gives. Errors: EngineError if it is None or an exception of the library."""
        try:
            made, cause = make(), None
        except (RuntimeError, TypeError, ValueError) as error:  # as pybind11 translates C++ exceptions
            made, cause = None, error
        if made is None:
            raise EngineError(
                f"{self._library} {self._trt.__version__} cannot make {what} ({cause or 'no reason given'}; "
                f"{self._log.take()}); free GPU memory, or {REBUILD}"
            ) from cause
        return made

    def _check(self, accepted: bool, network: str, what: str) -> None:
        if not accepted:
            raise EngineError(f"{network}: {what} refused by {self._library} ({self._log.take()}); {REBUILD}")


class TensorRTLaunch:
    """An execution context whose shapes are set; the addresses come with each launch."""

    def __init__(self, context: Any, names: Mapping[str, str], log: Log, network: str) -> None:
        self._context, self._names, self._log, self._network = context, names, log, network

    def __call__(self, addresses: Mapping[str, int], stream: int) -> None:
        for port, name in self._names.items():
            if not self._context.set_tensor_address(name, addresses[port]):
                raise self._refused(f"the address of {name}")
        if not self._context.execute_async_v3(stream):
            raise self._refused("the launch")

    def _refused(self, what: str) -> EngineError:
        return EngineError(f"{self._network}: TensorRT refused {what} ({self._log.take()}); {REBUILD}")


def tensor_names(engine: Any, network: str, expected: Signature) -> dict[str, str]:
    """Port -> the engine's name of it. They differ for a single output only, which some builders rename.

    Errors: EngineError if names, modes, dtypes, places or static dimensions are not the signature's.
    """
    found = {
        name: _described(engine, name) for name in map(engine.get_tensor_name, range(engine.num_io_tensors))
    }
    wants = {
        port.name: (mode, DTYPES[port.dtype], "DEVICE", [s if isinstance(s, int) else -1 for s in port.shape])
        for mode, ports in (("INPUT", expected.inputs), ("OUTPUT", expected.outputs))
        for port in ports
    }
    names = {port: port for port in wants}
    outputs = [name for name, (mode, *_) in found.items() if mode == "OUTPUT"]
    if len(outputs) == len(expected.outputs) == 1:
        names[expected.outputs[0].name] = outputs[0]
    if {names[port]: description for port, description in wants.items()} != found:
        raise EngineError(f"{network}: tensors {found} found, {wants} expected; {REBUILD}")
    return names


def _described(engine: Any, name: str) -> tuple[str, str, str, list[int]]:
    """(mode, dtype, place, shape with -1 where it is dynamic) of a tensor."""
    parts = (engine.get_tensor_mode(name), engine.get_tensor_dtype(name), engine.get_tensor_location(name))
    mode, dtype, place = (part.name for part in parts)
    return mode, dtype, place, list(engine.get_tensor_shape(name))


def find_profile(engine: Any, network: str, inputs: Mapping[str, tuple[int, ...]]) -> int:
    """The first optimisation profile whose ranges hold the shapes of all dynamic inputs.

    Errors: EngineError naming the shapes and every profile.
    """
    dynamic = {name: shape for name, shape in inputs.items() if -1 in tuple(engine.get_tensor_shape(name))}
    profiles = [
        {name: [tuple(dims) for dims in engine.get_tensor_profile_shape(name, i)] for name in dynamic}
        for i in range(engine.num_optimization_profiles)
    ]
    for index, ranges in enumerate(profiles):
        if all(_holds(ranges[name], shape) for name, shape in dynamic.items()):
            return index
    raise EngineError(
        f"{network}: shapes {dynamic} found, one of the profiles (smallest, best, largest) {profiles} "
        f"expected; use a prompt bucket of the bundle's manifest, or {REBUILD}"
    )


def _holds(limits: list[tuple[int, ...]], shape: tuple[int, ...]) -> bool:
    smallest, _, largest = limits
    return len(shape) == len(smallest) and all(
        low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True)
    )
