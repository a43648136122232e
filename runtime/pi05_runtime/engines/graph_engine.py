"""An Engine over any compiled networks of a GPU: buffers allocated once, every decision one graph launch.

A `Program` knows how to launch a network and nothing of decisions; this module knows decisions and
nothing of what a network is. Prompt buckets and step counts are met as they come: the first decision of
each pair allocates, warms up and captures, all later ones replay.
"""

import time
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pi05_runtime.engines import Decision, check_finite, no_cache
from pi05_runtime.engines.buffers import ALIGNMENT, Block, byte_size, decode, encode
from pi05_runtime.engines.driver import Bytes, Device
from pi05_runtime.engines.frames import Frames, Sizes, Stager
from pi05_runtime.engines.graph import Graph, capture
from pi05_runtime.errors import EngineError
from pi05_runtime.geometry import PREFIX, Signature, fixed_shape
from pi05_runtime.preprocess import Inputs
from pi05_runtime.tables import Schedule
from pi05_runtime.tensors import Floats

Shapes = Mapping[str, tuple[int, ...]]
GIVEN = ("prompt_embeddings", "prefix_length", "x")
"""Of a decision's inputs, beside its images, of which a frame may take the place."""


class Launch(Protocol):
    """One network at fixed shapes. Called, it enqueues: it waits for nothing, and from its second call on it
    allocates nothing either. Errors: EngineError."""

    def __call__(self, addresses: Mapping[str, int], stream: int) -> None: ...


class Program(Protocol):
    """Compiled networks by name: `denoise`, and `vision` and `prefill` or `prefix` in their place; for `run`
    any of them."""

    @property
    def networks(self) -> Collection[str]: ...

    def bind(self, network: str, shapes: Shapes, stream: int) -> Launch:
        """The network at these shapes of all its ports, to be launched on `stream`.

        Errors: EngineError for shapes that it was not compiled for.
        """
        ...

    @property
    def stager(self) -> Stager | None:
        """What brings camera frames into the model's square, if it can."""
        ...

    def close(self) -> None: ...


@dataclass
class _Bucket:
    """All that a prompt bucket needs on the device. given: what every decision brings from the host. images,
    actions: pinned memory. filled: tokens of the prompt there, beyond which it is zero."""

    prompt: int
    shapes: Shapes
    given: Block
    images: Bytes
    actions: Bytes
    addresses: dict[str, int]
    launches: dict[str, Launch]
    filled: int

    def stage_prompt(self, inputs: Inputs) -> None:
        rows, tokens = self.given.pinned["prompt_embeddings"].view(np.uint16), len(inputs.token_ids)
        rows = rows.reshape(self.prompt, -1)
        inputs.embedding.write(inputs.token_ids, rows[:tokens])
        rows[tokens : self.filled] = 0
        self.filled = tokens


@dataclass
class _Table:
    """A schedule on the device: one padded row of modulations a step, `stride` bytes apart."""

    schedule: Schedule
    modulation: int
    stride: int
    dt: int


class GraphEngine:
    """An Engine that replays CUDA graphs. It owns the device and the program that it is given."""

    def __init__(self, device: Device, program: Program, signatures: Mapping[str, Signature]) -> None:
        """signatures: of every network that the program holds. Errors: EngineError."""
        self._device, self._program, self._signatures = device, program, signatures
        self._ports = {port.name: port for s in signatures.values() for port in (*s.inputs, *s.outputs)}
        tokens = self._ports.get("image_tokens")
        self._image_tokens = int(tokens.shape[0]) if tokens else 0
        self._prefix = (PREFIX,) if PREFIX in program.networks else ("vision", "prefill")
        self._launches: dict[tuple[str, tuple[tuple[int, ...], ...]], Launch] = {}
        self._buckets: dict[int, _Bucket] = {}
        self._tables: dict[int, _Table] = {}
        self._frames: dict[Sizes, Frames] = {}
        self._graphs: dict[tuple[str, int, int, Sizes], Graph] = {}
        self._resident: _Bucket | None = None
        self._closed = False
        self._stream = device.create_stream()
        self._held = ExitStack()
        self._held.callback(device.close)
        self._held.callback(device.destroy_stream, self._stream)
        self._held.callback(program.close)
        # A launch may hold memory of its program.
        self._held.callback(self._launches.clear)
        self._held.callback(self._buckets.clear)

    @property
    def takes_frames(self) -> bool:
        return self._program.stager is not None

    def run(self, component: str, inputs: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, Floats]:
        self._activate()
        signature = self._signatures[component]
        if missing := {port.name for port in signature.inputs} - inputs.keys():
            raise EngineError(
                f"{component}: inputs {sorted(inputs)} found, {sorted(missing)} expected too; pass all"
            )
        shapes = self._shapes(component, self._prompt_size(signature, inputs))
        sources = {p.name: encode(p, shapes[p.name], inputs[p.name]) for p in signature.inputs}
        results = {p.name: np.empty(byte_size(p, shapes[p.name]), np.uint8) for p in signature.outputs}
        launch = self._launch(component, shapes)
        with ExitStack() as held:
            addresses = {n: self._alloc(held, len(b)) for n, b in (sources | results).items()}
            for name, source in sources.items():
                self._device.upload(addresses[name], source, self._stream)
            launch(addresses, self._stream)
            for name, result in results.items():
                self._device.download(result, addresses[name], self._stream)
            self._device.synchronize(self._stream)
        outputs = {p.name: decode(p, shapes[p.name], results[p.name]) for p in signature.outputs}
        check_finite(component, outputs)
        return outputs

    def decide(self, inputs: Inputs, noise: Floats, schedule: Schedule) -> Decision:
        """As the protocol has it. The time leaves out what only a first decision does."""
        self._activate()
        self._resident = None
        bucket, table = self._bucket(inputs.bucket), self._table(schedule)
        decision = self._act("decision", bucket, table, noise, inputs)
        # Captured now, because a controller that asks for it later must not wait.
        self._graph("denoise", bucket, table)
        self._resident = bucket
        return decision

    def denoise(self, noise: Floats, schedule: Schedule) -> Decision:
        """As the protocol has it. The time leaves out the capture of a new step count."""
        self._activate()
        if self._resident is None:
            raise no_cache()
        return self._act("denoise", self._resident, self._table(schedule), noise)

    def close(self) -> None:
        if not self._closed:
            self._device.activate()
            self._closed = True
            self._held.close()

    def _activate(self) -> None:
        if self._closed:
            raise EngineError("this engine is closed, an open one expected; load the bundle again")
        self._device.activate()

    def _act(
        self,
        kind: str,
        bucket: _Bucket,
        table: _Table,
        noise: Floats,
        inputs: Inputs | None = None,
    ) -> Decision:
        """inputs: of a whole decision."""
        frames = inputs.frames if inputs else ()
        sizes: Sizes = tuple((len(frame), len(frame[0])) for frame in frames)
        staging = self._staging(sizes)
        start = time.perf_counter()
        arrays: dict[str, npt.NDArray[np.generic]] = {"x": noise}
        if inputs:
            bucket.stage_prompt(inputs)
            arrays["prefix_length"] = np.asarray(inputs.prefix_length)
            if staging:
                staging.fill(frames)
            else:
                bucket.images[:] = encode(self._ports["images"], bucket.shapes["images"], inputs.images)
        for name, values in arrays.items():
            bucket.given.pinned[name][:] = encode(self._ports[name], bucket.shapes[name], values)
        staged = time.perf_counter()
        graph = self._graph(kind, bucket, table, sizes)
        captured = time.perf_counter()
        graph.launch(self._stream)
        self._device.synchronize(self._stream)
        actions = decode(self._ports["x"], bucket.shapes["x"], bucket.actions)
        check_finite(kind, {"actions": actions})
        spent = staged - start + time.perf_counter() - captured
        return Decision(actions, {kind: spent * 1e3})

    def _staging(self, sizes: Sizes) -> Frames | None:
        """What frames of these sizes need on the device; None for none."""
        stager = self._program.stager
        if not sizes or stager is None:
            return None
        if sizes not in self._frames:
            with ExitStack() as held:
                alloc = partial(self._alloc, held)
                self._frames[sizes] = Frames(self._device, stager, sizes, self._stream, alloc, held)
                self._held.callback(held.pop_all().close)
        return self._frames[sizes]

    def _graph(self, kind: str, bucket: _Bucket, table: _Table, sizes: Sizes = ()) -> Graph:
        """The captured sequence. A new one first runs directly, as warm-up, over what is staged."""
        key = (kind, bucket.prompt, table.schedule.steps, sizes)
        if key not in self._graphs:
            if kind == "decision":
                work = partial(self._enqueue_decision, bucket, table, self._staging(sizes))
            else:
                work = partial(self._enqueue_denoise, bucket, table)
            work(self._stream)
            self._device.synchronize(self._stream)
            name = f"{kind} of {key[2]} steps at prompt bucket {bucket.prompt}"
            graph = capture(self._device, self._stream, work, name)
            self._held.callback(graph.close)
            self._graphs[key] = graph
        return self._graphs[key]

    def _enqueue_decision(self, bucket: _Bucket, table: _Table, frames: Frames | None, stream: int) -> None:
        if frames:
            frames.enqueue(bucket.addresses["images"], stream)
        else:
            self._device.upload(bucket.addresses["images"], bucket.images, stream)
        bucket.given.upload(stream)
        for network in self._prefix:
            addresses = {port: bucket.addresses[port] for port in self._shapes(network, bucket.prompt)}
            bucket.launches[network](addresses, stream)
        self._enqueue_steps(bucket, table, stream)

    def _enqueue_denoise(self, bucket: _Bucket, table: _Table, stream: int) -> None:
        self._device.upload(bucket.addresses["x"], bucket.given.pinned["x"], stream)
        self._enqueue_steps(bucket, table, stream)

    def _enqueue_steps(self, bucket: _Bucket, table: _Table, stream: int) -> None:
        cache = {name: bucket.addresses[name] for name in ("keys", "values", "prefix_length")}
        x, x_next = bucket.addresses["x"], bucket.addresses["x_next"]
        for step in range(table.schedule.steps):
            modulation = table.modulation + step * table.stride
            own = {"x": x, "x_next": x_next, "modulation": modulation, "dt": table.dt}
            bucket.launches["denoise"](cache | own, stream)
            x, x_next = x_next, x
        self._device.download(bucket.actions, x, stream)

    def _bucket(self, prompt: int) -> _Bucket:
        if prompt not in self._buckets:
            networks = (*self._prefix, "denoise")
            shapes = {network: self._shapes(network, prompt) for network in networks}
            flat = {name: shape for of in shapes.values() for name, shape in of.items()}
            sizes = {name: byte_size(self._ports[name], shape) for name, shape in flat.items()}
            with ExitStack() as held:
                alloc = partial(self._alloc, held)
                given = Block(self._device, {n: sizes[n] for n in GIVEN}, alloc, held)
                made = {n: alloc(size) for n, size in sizes.items() if n not in (*GIVEN, "modulation", "dt")}
                bucket = _Bucket(
                    prompt,
                    flat,
                    given,
                    self._alloc_host(held, sizes["images"]),
                    self._alloc_host(held, sizes["x"]),
                    made | given.addresses,
                    {network: self._launch(network, shapes[network]) for network in networks},
                    prompt,
                )
                self._held.callback(held.pop_all().close)
            self._buckets[prompt] = bucket
        return self._buckets[prompt]

    def _table(self, schedule: Schedule) -> _Table:
        """The schedule's place on the device, filled with this very schedule."""
        table = self._tables.get(schedule.steps)
        if table is None:
            size = byte_size(self._ports["modulation"], self._shapes("denoise", 0)["modulation"])
            stride = -(-size // ALIGNMENT) * ALIGNMENT
            with ExitStack() as held:
                modulation = self._alloc(held, stride * schedule.steps)
                table = _Table(schedule, modulation, stride, self._alloc(held, 4))
                self._fill(table, schedule)
                self._held.callback(held.pop_all().close)
            self._tables[schedule.steps] = table
        elif table.schedule is not schedule:
            self._fill(table, schedule)
            table.schedule = schedule
        return table

    def _fill(self, table: _Table, schedule: Schedule) -> None:
        shape = self._shapes("denoise", 0)["modulation"]
        rows = np.zeros((schedule.steps, table.stride), np.uint8)
        for row, values in zip(rows, schedule.modulation, strict=True):
            encoded = encode(self._ports["modulation"], shape, values)
            row[: len(encoded)] = encoded
        self._device.upload(table.modulation, rows.reshape(-1), self._stream)
        dt = encode(self._ports["dt"], (), np.asarray(schedule.dt))
        self._device.upload(table.dt, dt, self._stream)
        self._device.synchronize(self._stream)

    def _launch(self, network: str, shapes: Shapes) -> Launch:
        key = (network, tuple(shapes.values()))
        if key not in self._launches:
            self._launches[key] = self._program.bind(network, shapes, self._stream)
        return self._launches[key]

    def _alloc(self, held: ExitStack, size: int) -> int:
        address = self._device.alloc(size)
        held.callback(self._device.free, address)
        return address

    def _alloc_host(self, held: ExitStack, size: int) -> Bytes:
        memory = self._device.alloc_host(size)
        held.callback(self._device.free_host, memory)
        return memory

    def _shapes(self, network: str, prompt: int) -> dict[str, tuple[int, ...]]:
        signature = self._signatures[network]
        ports = (*signature.inputs, *signature.outputs)
        return {port.name: fixed_shape(port, prompt, self._image_tokens) for port in ports}

    def _prompt_size(self, signature: Signature, inputs: Mapping[str, npt.NDArray[np.generic]]) -> int:
        """The prompt bucket of these arrays; 0 for a component that knows none."""
        for port in signature.inputs:
            for size, found in zip(port.shape, inputs[port.name].shape, strict=False):
                if size == "prompt":
                    return found
                if size == "prefix":
                    return found - self._image_tokens
        return 0
