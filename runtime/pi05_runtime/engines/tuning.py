"""Measures the variants of a kernel plan's launches on this very device, which needs no compiler for it.

Each is measured where it stands, as the time of its whole network: launches overlap, and what is fastest
alone may keep the one after it from starting. Launches of the same kernels and shape, one a layer, change
together. When all have been measured, those that were almost the best are once more, among what was chosen
meanwhile.
"""

import statistics
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing

import numpy as np
from tqdm import tqdm

from pi05_runtime.engines.buffers import byte_size, encode
from pi05_runtime.engines.driver import Device
from pi05_runtime.engines.graph import capture
from pi05_runtime.engines.plan import PlanLaunch, PlanProgram
from pi05_runtime.geometry import Signature
from pi05_runtime.plan import Shaped

SETTLE = 20
"""Measurements before those that count: a GPU's clocks rise with work, which the first variant would miss."""
WARM_UP, REPEATS = 2, 25
ALMOST = 1.01
"""Times the best, of a network: worth another measurement."""
LAUNCHES = 400
"""In one graph, so that launching it counts for little."""


def tune(
    device: Device, program: PlanProgram, signatures: Mapping[str, Signature]
) -> dict[str, dict[str, tuple[float, ...]]]:
    """Network -> group of launches -> milliseconds of the network with each variant of the group, as it was
    measured last.

    Groups are taken in turn, each with the best of all others so far, and at the first shapes that they occur
    at. Errors: EngineError.
    """
    stream = device.create_stream()
    times: dict[str, dict[str, tuple[float, ...]]] = {}
    chosen: dict[str, int]
    try:
        for network in program.networks:
            times[network], chosen = {}, {}
            for shaped in program.shaped(network):
                with ExitStack() as held:
                    addresses = _ports(device, signatures[network], shaped, stream, held)
                    variants = {
                        la.group: len(la.variants)
                        for la in shaped.launches
                        if len(la.variants) > 1 and la.group not in chosen
                    }
                    settling = program.bind_variants(network, shaped, chosen)
                    for _ in range(SETTLE):
                        _measure(device, settling, addresses, stream)
                    for group in tqdm([*variants] * 2, desc=f"tune {network}", unit="group"):
                        found = list(times[network].get(group, [0.0] * variants[group]))
                        worth = [i for i, ms in enumerate(found) if ms <= ALMOST * min(found)]
                        for variant in worth if len(worth) > 1 else ():
                            launch = program.bind_variants(network, shaped, {**chosen, group: variant})
                            found[variant] = _measure(device, launch, addresses, stream)
                        times[network][group] = tuple(found)
                        chosen[group] = found.index(min(found))
    finally:
        device.destroy_stream(stream)
    return times


def _ports(
    device: Device, signature: Signature, shaped: Shaped, stream: int, held: ExitStack
) -> dict[str, int]:
    """Memory for every port: noise, because a chip multiplies zeros faster, and a prefix without padding,
    which takes longest."""
    addresses: dict[str, int] = {}
    generator = np.random.default_rng(0)
    for port in (*signature.inputs, *signature.outputs):
        shape = shaped.shapes[port.name]
        if port.name == "prefix_length":
            values = np.asarray(shaped.shapes["keys"][1], np.int32)
        else:
            values = np.asarray(generator.standard_normal(shape, np.float32))
        addresses[port.name] = device.alloc(byte_size(port, shape))
        held.callback(device.free, addresses[port.name])
        encoded = encode(port, shape, values)
        device.upload(addresses[port.name], encoded, stream)
        device.synchronize(stream)
    return addresses


def _measure(device: Device, launch: PlanLaunch, addresses: Mapping[str, int], stream: int) -> float:
    """Milliseconds of one pass, the median of many."""
    passes = max(LAUNCHES // len(launch), 1)

    def enqueue(stream: int) -> None:
        for _ in range(passes):
            launch(addresses, stream)

    times: list[float] = []
    with closing(capture(device, stream, enqueue, "a measurement")) as graph:
        for _ in range(WARM_UP + REPEATS):
            start = time.perf_counter()
            graph.launch(stream)
            device.synchronize(stream)
            times.append(time.perf_counter() - start)
    return statistics.median(times[WARM_UP:]) / passes * 1e3
