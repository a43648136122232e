"""An Engine over any compiled networks of a GPU: memory allocated once, every decision replayed.

A `Program` knows how to launch a network and nothing of decisions; this module knows decisions and nothing of
what a network is. A decision is three CUDA graphs, one behind the other with one wait at the end: of the
images, of the prompt, with the first denoise step beside it where the program can, and of the denoise steps
that are left. All denoise steps alone, which a controller may ask for, are a graph too. While the device
looks at the images, the host reads the prompt and launches the longer graphs. Frame sizes, prompt buckets and
step counts are met as they come: the first decision of each allocates, warms up and captures, all later ones
replay.
"""

import time
from collections.abc import Callable, Hashable, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from pi05_runtime.engines import Decision, check_finite, no_cache
from pi05_runtime.engines.buffers import byte_size, decode, encode
from pi05_runtime.engines.driver import Device
from pi05_runtime.engines.frames import Frames, Sizes, Stager
from pi05_runtime.engines.graph import Graph, capture
from pi05_runtime.engines.memory import Bucket, Images, Memory, Table
from pi05_runtime.engines.program import Launch, Program, Shapes
from pi05_runtime.errors import EngineError
from pi05_runtime.geometry import PREFIX, Signature
from pi05_runtime.preprocess import Inputs, Prompt
from pi05_runtime.tables import Schedule
from pi05_runtime.tensors import Floats

Key = TypeVar("Key", bound=Hashable)
Made = TypeVar("Made")


class GraphEngine:
    """An Engine that replays CUDA graphs. It owns the device and the program that it is given."""

    def __init__(self, device: Device, program: Program, signatures: Mapping[str, Signature]) -> None:
        """signatures: of every network that the program holds. Errors: EngineError."""
        self._device, self._program, self._signatures = device, program, signatures
        split = PREFIX not in program.networks
        self._of_images = ("vision",) if split else ()
        self._of_prompt = "prefill" if split else PREFIX
        self._frames: dict[Sizes, Frames] = {}
        self._buckets: dict[int, Bucket] = {}
        self._tables: dict[int, Table] = {}
        self._launches: dict[tuple[str, tuple[tuple[int, ...], ...]], Launch] = {}
        self._overlapped: dict[int, Launch | None] = {}
        self._graphs: dict[str, Graph] = {}
        self._apart_s = 0.0
        self._resident: Bucket | None = None
        self._closed = False
        self._held = ExitStack()
        self._held.callback(device.close)
        self._stream, self._beside = device.create_stream(), device.create_stream()
        self._held.callback(device.destroy_stream, self._stream)
        self._held.callback(device.destroy_stream, self._beside)
        self._held.callback(program.close)
        # A launch may hold memory of its program.
        self._held.callback(self._launches.clear)
        self._held.callback(self._overlapped.clear)
        self._memory = Memory(device, signatures, self._stream, self._held)

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
        shapes = self._memory.shapes(component, self._memory.prompt_size(signature, inputs))
        sources = {p.name: encode(p, shapes[p.name], inputs[p.name]) for p in signature.inputs}
        results = {p.name: np.empty(byte_size(p, shapes[p.name]), np.uint8) for p in signature.outputs}
        launch = self._launch(component, shapes)
        with ExitStack() as held:
            addresses = {n: self._memory.alloc(held, len(b)) for n, b in (sources | results).items()}
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
        """As the protocol has it. The time leaves out what only a first decision does, and has the reading
        of the prompt."""
        self._activate()
        self._resident = None
        images, table = self._memory.images, self._table(schedule)
        start = self._now()
        try:
            self._launch_images(images, inputs)
            bucket, done = self._launch_prompt(images, inputs.prompt, noise, table)
            actions = self._denoised(bucket, table, done)
        except BaseException:
            self._settle()
            raise
        check_finite("decision", {"actions": actions})
        self._resident = bucket
        return Decision(actions, {"decision": (self._now() - start) * 1e3})

    def denoise(self, noise: Floats, schedule: Schedule) -> Decision:
        """As the protocol has it. The time leaves out the capture of a new step count."""
        self._activate()
        if self._resident is None:
            raise no_cache()
        bucket, table = self._resident, self._table(schedule)
        start = self._now()
        try:
            self._stage(bucket, "x", noise)
            self._device.upload(bucket.addresses["x"], bucket.given.pinned["x"], self._stream)
            actions = self._denoised(bucket, table, 0)
        except BaseException:
            self._settle()
            raise
        check_finite("denoise", {"actions": actions})
        return Decision(actions, {"denoise": (self._now() - start) * 1e3})

    def close(self) -> None:
        if not self._closed:
            self._device.activate()
            self._closed = True
            self._held.close()

    def _activate(self) -> None:
        if self._closed:
            raise EngineError("this engine is closed, an open one expected; load the bundle again")
        self._device.activate()

    def _launch_images(self, images: Images, inputs: Inputs) -> None:
        sizes: Sizes = tuple((len(frame), len(frame[0])) for frame in inputs.frames)
        frames = None
        if sizes and (stager := self._program.stager):
            frames = self._once(self._frames, sizes, partial(self._new_frames, stager, sizes))
            frames.bring(inputs.frames, self._stream)
        else:
            port = self._memory.ports["images"]
            images.pinned[:] = encode(port, self._memory.shape("images", 0), inputs.images)
        work = partial(self._enqueue_images, images, frames)
        self._graph(f"images {sizes}", work).launch(self._stream)

    def _launch_prompt(
        self, images: Images, prompt: Prompt, noise: Floats, table: Table
    ) -> tuple[Bucket, int]:
        """And how many denoise steps were launched with it."""
        bucket = self._once(self._buckets, prompt.bucket, partial(self._memory.bucket, prompt.bucket))
        bucket.stage_prompt(prompt)
        self._stage(bucket, "prefix_length", np.asarray(prompt.prefix_length))
        self._stage(bucket, "x", noise)
        # Not behind the images, so that it has arrived when these have been looked at.
        bucket.given.upload(self._beside)
        self._device.follow(self._stream, self._beside)
        overlapped = self._once(self._overlapped, bucket.prompt, partial(self._overlap, bucket.prompt))
        if overlapped is None:
            work = partial(self._enqueue_prompt, images, bucket)
            self._graph(f"prompt bucket {bucket.prompt}", work).launch(self._stream)
            return bucket, 0
        addresses = images.addresses | bucket.addresses | _step(bucket, table, 0)
        name = f"prompt bucket {bucket.prompt} with 1 of {table.schedule.steps} denoise steps"
        self._graph(name, partial(overlapped, addresses)).launch(self._stream)
        return bucket, 1

    def _denoised(self, bucket: Bucket, table: Table, done: int) -> Floats:
        """The actions, once all that was launched has ended. done: steps of that."""
        steps = table.schedule.steps
        name = f"prompt bucket {bucket.prompt}, {steps - done} of {steps} denoise steps"
        self._graph(name, partial(self._enqueue_steps, bucket, table, done)).launch(self._stream)
        self._device.synchronize(self._stream)
        return decode(self._memory.ports["x"], self._memory.shape("x", 0), bucket.actions)

    def _enqueue_images(self, images: Images, frames: Frames | None, stream: int) -> None:
        if frames:
            frames.enqueue(images.addresses["images"], stream)
        else:
            self._device.upload(images.addresses["images"], images.pinned, stream)
        for network in self._of_images:
            self._enqueue(network, 0, images.addresses, stream)

    def _enqueue_prompt(self, images: Images, bucket: Bucket, stream: int) -> None:
        self._enqueue(self._of_prompt, bucket.prompt, images.addresses | bucket.addresses, stream)

    def _enqueue_steps(self, bucket: Bucket, table: Table, done: int, stream: int) -> None:
        for step in range(done, table.schedule.steps):
            self._enqueue("denoise", bucket.prompt, bucket.addresses | _step(bucket, table, step), stream)
        self._device.download(bucket.actions, bucket.x_after(table.schedule.steps), stream)

    def _enqueue(self, network: str, prompt: int, addresses: Mapping[str, int], stream: int) -> None:
        shapes = self._memory.shapes(network, prompt)
        self._launch(network, shapes)({port: addresses[port] for port in shapes}, stream)

    def _launch(self, network: str, shapes: Shapes) -> Launch:
        make = partial(self._program.bind, network, shapes, self._stream)
        return self._once(self._launches, (network, tuple(shapes.values())), make)

    def _overlap(self, prompt: int) -> Launch | None:
        """The prompt's network and the first denoise step."""
        networks = (self._of_prompt, "denoise")
        shapes = (self._memory.shapes(networks[0], prompt), self._memory.shapes(networks[1], prompt))
        return self._program.bind_overlapped(networks, shapes, self._stream, self._beside)

    def _table(self, schedule: Schedule) -> Table:
        """Filled with this very schedule."""
        table = self._once(self._tables, schedule.steps, partial(self._memory.table, schedule))
        if table.schedule is not schedule:
            self._memory.fill(table, schedule)
        return table

    def _stage(self, bucket: Bucket, name: str, values: npt.NDArray[np.generic]) -> None:
        shape = self._memory.shape(name, bucket.prompt)
        bucket.given.pinned[name][:] = encode(self._memory.ports[name], shape, values)

    def _new_frames(self, stager: Stager, sizes: Sizes) -> Frames:
        with ExitStack() as held:
            frames = Frames(
                self._device, stager, sizes, self._stream, partial(self._memory.alloc, held), held
            )
            self._held.callback(held.pop_all().close)
        return frames

    def _graph(self, name: str, work: Callable[[int], None]) -> Graph:
        return self._once(self._graphs, name, partial(self._captured, name, work))

    def _captured(self, name: str, work: Callable[[int], None]) -> Graph:
        """It first runs directly, as warm-up, over what is staged."""
        work(self._stream)
        self._device.synchronize(self._stream)
        graph = capture(self._device, self._stream, work, name)
        self._held.callback(graph.close)
        return graph

    def _once(self, kept: dict[Key, Made], key: Key, make: Callable[[], Made]) -> Made:
        """What is kept, made if the key is new, in time that is not the decision's."""
        if key not in kept:
            start = self._now()
            kept[key] = make()
            self._apart_s += self._now() - start
        return kept[key]

    def _now(self) -> float:
        """Seconds, without those in which things were made."""
        return time.perf_counter() - self._apart_s

    def _settle(self) -> None:
        """Waits after an error for all that was enqueued: the next decision writes what it reads."""
        for stream in (self._beside, self._stream):
            with suppress(EngineError):
                self._device.synchronize(stream)


def _step(bucket: Bucket, table: Table, step: int) -> dict[str, int]:
    """Addresses that a denoise step has for itself."""
    x, x_next = bucket.x_after(step), bucket.x_after(step + 1)
    return {"x": x, "x_next": x_next, "modulation": table.modulation + step * table.stride, "dt": table.dt}
