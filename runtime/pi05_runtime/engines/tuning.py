"""Measures the variants of a kernel plan's launches on this very device, which needs no compiler for it.

Each is measured where it stands, as the time of its whole network: launches overlap, and what is fastest
alone may keep the one after it from starting. Launches of the same kernels and shape, one a layer, change
together. When all have been measured, those that were almost the best are once more, among what was chosen
meanwhile.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from functools import partial

import msgspec
import numpy as np
from tqdm import tqdm

from pi05_runtime.engines.buffers import byte_size, encode
from pi05_runtime.engines.driver import Device
from pi05_runtime.engines.graph import capture
from pi05_runtime.engines.plan import PlanProgram
from pi05_runtime.geometry import Signature
from pi05_runtime.plan import Shaped

SETTLE = 20
"""Measurements before those that count: a GPU's clocks rise with work, which the first variant would miss."""
WARM_UP, REPEATS = 2, 25
ALMOST = 1.01
"""Times the best, of a network: worth another measurement."""
LAUNCHES = 400
"""In one graph, so that launching it counts for little."""


class Network(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """groups: group of launches -> milliseconds of the network with each variant of it. before, after: with
    the first variants of all, and with the best, over all shapes."""

    groups: dict[str, tuple[float, ...]]
    before: float
    after: float


def tune(device: Device, program: PlanProgram, signatures: Mapping[str, Signature]) -> dict[str, Network]:
    """Network -> what was measured of it.

    Groups are taken in turn, each with the best of all others so far, and at the first shapes that they occur
    at. Errors: EngineError.
    """
    stream = device.create_stream()
    measured: dict[str, Network] = {}
    try:
        for network in program.networks:
            times: dict[str, tuple[float, ...]] = {}
            ends: list[tuple[float, float]] = []
            for shaped in program.shaped(network):
                with ExitStack() as held:
                    addresses = _ports(device, signatures[network], shaped, stream, held)
                    measure = partial(_measure, device, program, network, shaped, addresses, stream)
                    variants = {
                        la.group: len(la.variants)
                        for la in shaped.launches
                        if len(la.variants) > 1 and la.group not in times
                    }
                    ends.append(_tune(f"tune {network}", measure, variants, times))
            measured[network] = Network(times, sum(first for first, _ in ends), sum(last for _, last in ends))
    finally:
        device.destroy_stream(stream)
    return measured


def _tune(
    title: str,
    measure: Callable[[Mapping[str, int]], float],
    variants: Mapping[str, int],
    times: dict[str, tuple[float, ...]],
) -> tuple[float, float]:
    """(milliseconds before, after). measure: of variants chosen for groups. variants: how many there are of
    each group that `times` is to have too."""

    def best() -> dict[str, int]:
        return {group: found.index(min(found)) for group, found in times.items()}

    for _ in range(SETTLE):
        measure({})
    before = measure({})
    for group, count in tqdm(variants.items(), desc=title, unit="group"):
        others = best()
        times[group] = tuple(measure({**others, group: i}) for i in range(count))
    for group in tqdm(variants, desc=f"{title} again", unit="group"):
        times[group] = _again(group, times[group], measure, best())
    return before, measure(best())


def _again(
    group: str,
    times: tuple[float, ...],
    measure: Callable[[Mapping[str, int]], float],
    others: Mapping[str, int],
) -> tuple[float, ...]:
    """The group's times: of variants that were almost the best measured once more, of the others in
    proportion."""
    best = min(times)
    worth = [i for i, ms in enumerate(times) if ms <= ALMOST * best]
    if len(worth) == 1:
        return times
    found = {i: measure({**others, group: i}) for i in worth}
    return tuple(found.get(i, ms / best * min(found.values())) for i, ms in enumerate(times))


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


def _measure(
    device: Device,
    program: PlanProgram,
    network: str,
    shaped: Shaped,
    addresses: Mapping[str, int],
    stream: int,
    chosen: Mapping[str, int],
) -> float:
    """Milliseconds of one pass over the network with these variants, the median of many."""
    launch = program.bind_variants(network, shaped, chosen)
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
