"""A Device of host memory, whose capture records calls and whose replay repeats them; and a tiny pi0.5 of
numpy functions for it, whose every output depends on every input."""

import ctypes
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pi05_runtime.bf16 import to_bf16
from pi05_runtime.engines.buffers import decode, encode
from pi05_runtime.engines.driver import Bytes
from pi05_runtime.errors import EngineError
from pi05_runtime.geometry import Geometry, Signature, Stack, Vision, signatures
from pi05_runtime.preprocess import Inputs, Prompt
from pi05_runtime.tables import Schedule, TokenEmbedding

TINY = Geometry(
    Vision(image_size=4, patch=2, width=4, depth=1, heads=1, mlp=4),
    Stack(width=4, depth=2, heads=1, head_dim=2, mlp=4),
    Stack(width=3, depth=2, heads=1, head_dim=2, mlp=4),
    vocabulary=8,
    action_width=2,
)
VIEWS, HORIZON = 2, 3
SIGNATURES = signatures(TINY, VIEWS, HORIZON)


def example(
    prompt: int = 5, seed: int = 0, tokens: int | None = None
) -> tuple[Inputs, npt.NDArray[np.float32]]:
    """Random inputs of a prompt bucket, one token short of it unless said otherwise, and noise."""
    tokens = prompt - 1 if tokens is None else tokens
    generator = np.random.default_rng(seed)
    images = generator.uniform(-1, 1, (VIEWS, 3, 4, 4)).astype(np.float32)
    embedding = TokenEmbedding(to_bf16(generator.standard_normal((prompt, 4), np.float32)))
    noise = generator.standard_normal((HORIZON, 2), np.float32)
    found = Prompt(np.arange(tokens), embedding, prompt, VIEWS * 4 + tokens)
    return Inputs(images, lambda: found), noise


def schedule(steps: int, seed: int = 0) -> Schedule:
    generator = np.random.default_rng(seed)
    modulation = generator.standard_normal((steps, TINY.modulations, 9), np.float32)
    return Schedule(np.float32(-1 / steps), modulation)


class HostDevice:
    """Addresses are real ones, so that a launch may be given any offset into an allocation."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.memory: dict[int, npt.NDArray[np.uint8]] = {}
        self.pinned: dict[int, Bytes] = {}
        self.handles: dict[int, list[Callable[[], None]]] = {}
        self.recording: list[Callable[[], None]] | None = None
        self.invalid = self.closed = False
        self.filler = 0xFF
        """Of memory that nobody has written; as floats, NaN."""
        self.fail_on: str | None = None
        """The next call of this name fails."""

    def enqueue(self, work: Callable[[], None]) -> None:
        """Runs it, or records it during a capture."""
        if self.recording is None:
            work()
        else:
            self.recording.append(work)

    def activate(self) -> None:
        self._count("activate")

    def alloc(self, size: int) -> int:
        self._count("alloc", legal_in_capture=False)
        array = np.full(size, self.filler, np.uint8)
        self.memory[array.ctypes.data] = array
        return array.ctypes.data

    def free(self, address: int) -> None:
        del self.memory[address]

    def alloc_host(self, size: int) -> Bytes:
        self._count("alloc_host", legal_in_capture=False)
        array = np.full(size, self.filler, np.uint8)
        self.pinned[array.ctypes.data] = array
        return array

    def free_host(self, memory: Bytes) -> None:
        del self.pinned[memory.ctypes.data]

    def upload(self, address: int, source: Bytes, stream: int) -> None:
        self._count("upload")
        self._captures_only_pinned(source)
        self.enqueue(lambda: np.copyto(at(address, source.nbytes), source))

    def download(self, target: Bytes, address: int, stream: int) -> None:
        self._count("download")
        self._captures_only_pinned(target)
        self.enqueue(lambda: np.copyto(target, at(address, target.nbytes)))

    def create_stream(self) -> int:
        return self._handle([])

    def destroy_stream(self, stream: int) -> None:
        del self.handles[stream]

    def synchronize(self, stream: int) -> None:
        self._count("synchronize", legal_in_capture=False)

    def follow(self, stream: int, other: int) -> None:
        self._count("follow")
        assert stream in self.handles and other in self.handles and stream != other

    def begin_capture(self, stream: int) -> None:
        self._count("begin_capture")
        assert self.recording is None
        self.recording = []

    def end_capture(self, stream: int) -> int:
        recorded, self.recording, invalid, self.invalid = self.recording, None, self.invalid, False
        self._count("end_capture")
        assert recorded is not None
        if invalid:
            raise EngineError("cuStreamEndCapture: CUDA_ERROR_STREAM_CAPTURE_INVALIDATED")
        return self._handle(recorded)

    def instantiate(self, graph: int, stream: int) -> int:
        self._count("instantiate")
        return self._handle(list(self.handles[graph]))

    def launch(self, executable: int, stream: int) -> None:
        self._count("launch")
        for work in self.handles[executable]:
            self.enqueue(work)

    def destroy_graph(self, graph: int) -> None:
        del self.handles[graph]

    def destroy_executable(self, executable: int) -> None:
        del self.handles[executable]

    def close(self) -> None:
        self.closed = True

    @property
    def leaks(self) -> int:
        """What was given out and not taken back."""
        return len(self.memory) + len(self.pinned) + len(self.handles)

    def _handle(self, work: list[Callable[[], None]]) -> int:
        handle = max(self.handles, default=0) + 1
        self.handles[handle] = work
        return handle

    def _count(self, name: str, legal_in_capture: bool = True) -> None:
        self.calls[name] += 1
        if name == self.fail_on:
            self.fail_on = None
            raise EngineError(f"{name}: CUDA error on purpose")
        if self.recording is not None and not legal_in_capture:
            self.invalid = True
            raise EngineError(f"{name}: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")

    def _captures_only_pinned(self, memory: Bytes) -> None:
        first = memory.ctypes.data
        pinned = any(start <= first < start + len(whole) for start, whole in self.pinned.items())
        assert self.recording is None or pinned


def at(address: int, size: int) -> npt.NDArray[np.uint8]:
    """The `size` bytes at an address, to read and write."""
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8)


Function = Callable[[dict[str, npt.NDArray[np.float32]]], dict[str, npt.NDArray[np.float32]]]


@dataclass
class HostProgram:
    """A Program of host functions: float32 arrays by port name in, and out."""

    device: HostDevice
    functions: dict[str, Function]
    signatures: Mapping[str, Signature]
    bound: list[tuple[str, dict[str, tuple[int, ...]]]] = field(default_factory=list)
    on_launch: Callable[[str], None] = lambda network: None
    overlaps: bool = False
    closed: bool = False

    @property
    def networks(self) -> list[str]:
        return list(self.functions)

    @property
    def stager(self) -> None:
        return None

    def bind(
        self, network: str, shapes: Mapping[str, tuple[int, ...]], stream: int
    ) -> Callable[[Mapping[str, int], int], None]:
        self.bound.append((network, dict(shapes)))
        ports = self.signatures[network]

        def launch(addresses: Mapping[str, int], stream: int) -> None:
            assert addresses.keys() == shapes.keys()
            self.on_launch(network)
            self.device.enqueue(lambda: work(dict(addresses)))

        def work(addresses: dict[str, int]) -> None:
            inputs = {}
            for port in ports.inputs:
                shape = shapes[port.name]
                size = encode(port, shape, np.zeros(shape, np.float32)).nbytes
                inputs[port.name] = decode(port, shape, at(addresses[port.name], size))
            outputs = self.functions[network](inputs)
            for port in ports.outputs:
                raw = encode(port, shapes[port.name], outputs[port.name])
                at(addresses[port.name], raw.nbytes)[:] = raw

        return launch

    def bind_overlapped(
        self,
        networks: tuple[str, str],
        shapes: tuple[Mapping[str, tuple[int, ...]], Mapping[str, tuple[int, ...]]],
        stream: int,
        beside: int,
    ) -> Callable[[Mapping[str, int], int], None] | None:
        if not self.overlaps:
            return None
        bound = [(of, self.bind(network, of, stream)) for network, of in zip(networks, shapes, strict=True)]

        def launch(addresses: Mapping[str, int], stream: int) -> None:
            for of, one in bound:
                one({port: addresses[port] for port in of}, stream)

        return launch

    def close(self) -> None:
        self.closed = True


def vision(given: dict[str, npt.NDArray[np.float32]]) -> dict[str, npt.NDArray[np.float32]]:
    images = given["images"]
    patches = images.reshape(VIEWS, 3, 2, 2, 2, 2).transpose(0, 2, 4, 1, 3, 5).reshape(VIEWS * 4, 12)
    return {"image_tokens": patches[:, :4] + patches[:, 4:8] * patches[:, 8:]}


def prefill(given: dict[str, npt.NDArray[np.float32]]) -> dict[str, npt.NDArray[np.float32]]:
    tokens = np.concatenate([given["image_tokens"], given["prompt_embeddings"]])
    tokens = tokens * (np.arange(len(tokens)) < given["prefix_length"])[:, None]
    return {"keys": np.stack([tokens[:, :2], tokens[:, 2:]]), "values": np.stack([tokens[:, 1:3]] * 2)}


def denoise(given: dict[str, npt.NDArray[np.float32]]) -> dict[str, npt.NDArray[np.float32]]:
    read = (given["keys"] * given["values"]).sum((0, 1)) / given["prefix_length"]
    velocity = np.tanh(given["x"] + read + given["modulation"].sum())
    return {"x_next": given["x"] + given["dt"] * velocity}


def prefix(given: dict[str, npt.NDArray[np.float32]]) -> dict[str, npt.NDArray[np.float32]]:
    return prefill(given | vision(given))


SPLIT: dict[str, Function] = {"vision": vision, "prefill": prefill, "denoise": denoise}
