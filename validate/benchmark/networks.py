"""Each network of a decision in a CUDA graph of its own, over the golden sample's data.

The engine captures whole decisions, which says nothing of what takes the time. The same program is opened
here a second time, beside the policy's, and its networks are captured one by one.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pi05_runtime.engines.buffers import byte_size, encode
from pi05_runtime.engines.driver import CudaDevice, Device
from pi05_runtime.engines.graph import Graph, capture
from pi05_runtime.engines.graph_engine import Program
from pi05_runtime.geometry import Signature, decision_networks, fixed_shape, signatures
from pi05_runtime.manifest import Manifest, read_manifest
from pi05_runtime.tables import Schedule, read_schedule
from pi05_runtime.targets import find_target
from pi05_runtime.tuned import read_tuned
from validate.benchmark.inputs import engine_files, golden_inputs

Arrays = Mapping[str, npt.NDArray[np.generic]]


class Networks:
    """A program's networks, bound at one set of shapes, with memory for every port."""

    def __init__(
        self,
        device: Device,
        program: Program,
        ports: Mapping[str, Signature],
        arrays: Arrays,
        schedules: Callable[[int], Schedule],
        held: ExitStack,
    ) -> None:
        """arrays: what a decision is given, by port. held: takes what is to be closed."""
        self._device, self._schedules, self._held = device, schedules, held
        self._networks = decision_networks(program.networks)
        bucket = len(arrays["prompt_embeddings"])
        tokens = next(p.shape[0] for p in ports["vision"].outputs)
        found = {p.name: p for n in self._networks for p in (*ports[n].inputs, *ports[n].outputs)}
        shapes = {name: fixed_shape(p, bucket, int(tokens)) for name, p in found.items()}
        self._stream = device.create_stream()
        held.callback(device.destroy_stream, self._stream)
        self._addresses = {name: device.alloc(byte_size(p, shapes[name])) for name, p in found.items()}
        for address in self._addresses.values():
            held.callback(device.free, address)
        schedule = schedules(1)
        given = {**arrays, "modulation": schedule.modulation[0], "dt": np.asarray(schedule.dt)}
        for name in found.keys() & given.keys():
            device.upload(self._addresses[name], encode(found[name], shapes[name], given[name]), self._stream)
            device.synchronize(self._stream)
        self._launches: dict[str, Callable[[int], None]] = {}
        for network in self._networks:
            names = [p.name for p in (*ports[network].inputs, *ports[network].outputs)]
            launch = program.bind(network, {name: shapes[name] for name in names}, self._stream)
            self._launches[network] = partial(launch, {name: self._addresses[name] for name in names})
            # In the order of a decision, so that each reads what the one before it wrote.
            self._launches[network](self._stream)
            device.synchronize(self._stream)
        self._graphs: dict[tuple[str, int], Graph] = {}

    def replays(self, steps: int) -> dict[str, Callable[[], None]]:
        """Network -> what replays it once and waits; denoise does all its steps, each from the same state."""
        found: dict[str, Callable[[], None]] = {}
        for network in self._networks:
            times = steps if network == "denoise" else 1
            if (network, times) not in self._graphs:
                graph = capture(self._device, self._stream, partial(self._enqueue, network, times), network)
                self._held.callback(graph.close)
                self._graphs[network, times] = graph
            found[network] = partial(self._replay, self._graphs[network, times])
        return found

    def _enqueue(self, network: str, times: int, stream: int) -> None:
        for _ in range(times):
            self._launches[network](stream)

    def _replay(self, graph: Graph) -> None:
        graph.launch(self._stream)
        self._device.synchronize(self._stream)


@contextmanager
def open_networks(bundle: Path, target: str, engines: Path | None) -> Iterator[Networks]:
    """Of a bundle that `Policy.load` has accepted. Errors: those of loading, and EngineError."""
    manifest = read_manifest(bundle)
    interface = manifest.interface
    ports = signatures(manifest.geometry, len(interface.cameras), interface.horizon)
    inputs, noise = golden_inputs(bundle, manifest)
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "images": inputs.images,
        "prompt_embeddings": inputs.prompt_embeddings,
        "prefix_length": np.asarray(inputs.prefix_length, np.int32),
        "x": noise,
    }
    with ExitStack() as held:
        device = held.enter_context(closing(CudaDevice()))
        program = held.enter_context(closing(_program(bundle, manifest, target, engines, ports, device)))
        schedules = partial(read_schedule, bundle / manifest.schedule)
        yield Networks(device, program, ports, arrays, schedules, held)


def _program(
    bundle: Path,
    manifest: Manifest,
    target: str,
    engines: Path | None,
    ports: Mapping[str, Signature],
    device: Device,
) -> Program:
    kind = find_target(target).engine
    folder, entries = engine_files(bundle, manifest, target, engines)
    files = {network: folder / entry.file for network, entry in entries.items()}
    if kind == "plan":
        from pi05_runtime.engines.plan import PlanProgram

        choices = {} if engines is None else read_tuned(engines, bundle, target).choices
        return PlanProgram(files, ports, device, choices)
    from pi05_runtime.engines.tensorrt import TensorRTProgram

    return TensorRTProgram(kind, files, ports, device)
