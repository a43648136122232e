"""Each network of a decision in a CUDA graph of its own, over the golden sample's data.

The engine captures whole decisions, which says nothing of what takes the time. The same program is opened
here a second time, beside the policy's, and its networks are captured one by one; and, apart from them, what
a decision does besides.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pi05_runtime import golden
from pi05_runtime.engines import open_program
from pi05_runtime.engines.buffers import Block, byte_size, encode
from pi05_runtime.engines.driver import Bytes, CudaDevice, Device
from pi05_runtime.engines.frames import Frames
from pi05_runtime.engines.graph import Graph, capture
from pi05_runtime.engines.memory import GIVEN
from pi05_runtime.engines.program import Program
from pi05_runtime.geometry import Signature, decision_networks, fixed_shape, signatures
from pi05_runtime.manifest import read_manifest
from pi05_runtime.tables import Schedule, read_schedule
from validate.benchmark.inputs import chosen_variants, engine_files, golden_inputs
from validate.benchmark.results import OVERLAPPED

Arrays = Mapping[str, npt.NDArray[np.generic]]
Images = Sequence[npt.NDArray[np.uint8]]


class Networks:
    """A program's networks, bound at one set of shapes, with memory for every port. names: of those that a
    decision runs."""

    def __init__(
        self,
        device: Device,
        program: Program,
        ports: Mapping[str, Signature],
        arrays: Arrays,
        frames: Images,
        schedules: Callable[[int], Schedule],
        held: ExitStack,
    ) -> None:
        """arrays: what a decision is given, by port. frames: those that its images come from. held: takes
        what is to be closed."""
        self.device, self.program = device, program
        self.names = decision_networks(program.networks)
        self._arrays, self._frames, self._held = arrays, frames, held
        self._names = {n: [p.name for p in (*ports[n].inputs, *ports[n].outputs)] for n in self.names}
        self._ports = {p.name: p for n in self.names for p in (*ports[n].inputs, *ports[n].outputs)}
        self._bucket = len(arrays["prompt_embeddings"])
        self._image_tokens = int(next(p.shape[0] for p in ports["vision"].outputs))
        self._shapes = {
            name: fixed_shape(p, self._bucket, self._image_tokens) for name, p in self._ports.items()
        }
        self.stream = device.create_stream()
        held.callback(device.destroy_stream, self.stream)
        sizes = {name: byte_size(p, self._shapes[name]) for name, p in self._ports.items()}
        self._given = Block(device, {name: sizes[name] for name in GIVEN}, self._alloc, held)
        made = {name: self._alloc(size) for name, size in sizes.items() if name not in GIVEN}
        self._addresses = made | self._given.addresses
        schedule = schedules(1)
        given = {**arrays, "modulation": schedule.modulation[0], "dt": np.asarray(schedule.dt)}
        for name in self._ports.keys() & given.keys():
            device.upload(self._addresses[name], self._encode(name, given[name]), self.stream)
            device.synchronize(self.stream)
        self._launches: dict[str, Callable[[int], None]] = {}
        for network in self.names:
            launch = program.bind(network, self.shapes(network), self.stream)
            self._launches[network] = partial(launch, self.addresses(network))
            # In the order of a decision, so that each reads what the one before it wrote.
            self._launches[network](self.stream)
            device.synchronize(self.stream)
        self._overlapped = self._bind_overlapped()
        self._graphs: dict[tuple[str, int], Graph] = {}

    def _bind_overlapped(self) -> Callable[[int], None] | None:
        first, second = self.names[-2:]
        beside = self.device.create_stream()
        self._held.callback(self.device.destroy_stream, beside)
        shapes = (self.shapes(first), self.shapes(second))
        launch = self.program.bind_overlapped((first, second), shapes, self.stream, beside)
        if launch is None:
            return None
        overlapped = partial(launch, self.addresses(first) | self.addresses(second))
        overlapped(self.stream)
        self.device.synchronize(self.stream)
        return overlapped

    def shapes(self, network: str) -> dict[str, tuple[int, ...]]:
        """Of its ports."""
        return {name: self._shapes[name] for name in self._names[network]}

    def addresses(self, network: str) -> dict[str, int]:
        """Of its ports, which hold the golden sample's data."""
        return {name: self._addresses[name] for name in self._names[network]}

    def replays(self, steps: int) -> dict[str, Callable[[], None]]:
        """Network -> what replays it once and waits; denoise does all its steps, each from the same state.
        OVERLAPPED likewise, where the program can do that."""
        found: dict[str, Callable[[], None]] = {}
        for network in self.names:
            times = steps if network == "denoise" else 1
            found[network] = self._graph(network, times, partial(self._enqueue, network, times))
        if self._overlapped is not None:
            found[OVERLAPPED] = self._graph(OVERLAPPED, 1, self._overlapped)
        return found

    def outside(self) -> dict[str, Callable[[], None]]:
        """What a decision does besides its networks, as results.Run has it, each done once and waited for."""
        stager, frames, given = self.program.stager, None, self._given.pinned
        if stager is not None:
            shapes = tuple(frame.shape[:2] for frame in self._frames)
            frames = Frames(self.device, stager, shapes, self.stream, self._alloc, self._held)
        images, actions = self._alloc_host("images"), self._alloc_host("x")
        prompt = self._encode("prompt_embeddings", self._arrays["prompt_embeddings"])
        given["prompt_embeddings"][:] = prompt
        # Of the prompt's tokens alone; a decision takes as many bytes from the table.
        used = len(prompt) // self._bucket * (int(self._arrays["prefix_length"]) - self._image_tokens)

        def enqueue_images(stream: int) -> None:
            if frames is not None:
                frames.enqueue(self._addresses["images"], stream)
            else:
                self.device.upload(self._addresses["images"], images, stream)

        def bring_images() -> None:
            if frames is not None:
                frames.bring(self._frames, self.stream)
            else:
                images[:] = self._encode("images", self._arrays["images"])
            replay()

        def bring_prompt() -> None:
            given["prompt_embeddings"][:used] = prompt[:used]
            for name in given.keys() - {"prompt_embeddings"}:
                given[name][:] = self._encode(name, self._arrays[name])
            self._given.upload(self.stream)
            self.device.download(actions, self._addresses["x"], self.stream)
            self.device.synchronize(self.stream)

        replay = self._graph("images", 1, enqueue_images)
        return {"images": bring_images, "prompt": bring_prompt}

    def _graph(self, name: str, times: int, enqueue: Callable[[int], None]) -> Callable[[], None]:
        if (name, times) not in self._graphs:
            graph = capture(self.device, self.stream, enqueue, name)
            self._held.callback(graph.close)
            self._graphs[name, times] = graph
        return partial(self._replay, self._graphs[name, times])

    def _enqueue(self, network: str, times: int, stream: int) -> None:
        for _ in range(times):
            self._launches[network](stream)

    def _replay(self, graph: Graph) -> None:
        graph.launch(self.stream)
        self.device.synchronize(self.stream)

    def _encode(self, name: str, values: npt.NDArray[np.generic]) -> Bytes:
        return encode(self._ports[name], self._shapes[name], values)

    def _alloc(self, size: int) -> int:
        address = self.device.alloc(size)
        self._held.callback(self.device.free, address)
        return address

    def _alloc_host(self, name: str) -> Bytes:
        memory = self.device.alloc_host(byte_size(self._ports[name], self._shapes[name]))
        self._held.callback(self.device.free_host, memory)
        return memory


@contextmanager
def open_networks(bundle: Path, target: str, engines: Path | None) -> Iterator[Networks]:
    """Of a bundle that `Policy.load` has accepted. Errors: those of loading, and EngineError."""
    manifest = read_manifest(bundle)
    interface = manifest.interface
    ports = signatures(manifest.geometry, len(interface.cameras), interface.horizon)
    inputs, noise = golden_inputs(bundle, manifest)
    sample, _ = golden.observation(bundle, manifest.golden.file, manifest.golden.prompt)
    frames = [sample["images"][camera] for camera in interface.cameras]
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "images": inputs.images,
        "prompt_embeddings": inputs.prompt.embeddings,
        "prefix_length": np.asarray(inputs.prompt.prefix_length, np.int32),
        "x": noise,
    }
    folder, entries = engine_files(bundle, manifest, target, engines)
    files = {network: folder / entry.file for network, entry in entries.items()}
    choices = chosen_variants(bundle, target, engines)
    with ExitStack() as held:
        device = held.enter_context(closing(CudaDevice()))
        program = held.enter_context(closing(open_program(target, files, ports, device, choices)))
        schedules = partial(read_schedule, bundle / manifest.schedule)
        yield Networks(device, program, ports, arrays, frames, schedules, held)
