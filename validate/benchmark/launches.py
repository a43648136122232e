"""The kernel table: what each kind of launch in a kernel plan takes, and how far that is from its floor.

Launches of one network that are the same kernel at the same shape, one a layer, are a row, whether there was
a variant to choose or not. They are timed in their order, in a CUDA graph of their own, so that each reads
its own layer's weights. A chip's cache may hold the weights of a whole row, but not those of a decision: so a
pass over the row comes after other launches of its network, which read more than a cache holds and whose time
is taken off.

The sum of the rows may differ from the network's own time: there a launch begins while the one before it
ends, and finds in the cache what that one wrote.
"""

import re
import statistics
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from export.stage import progress
from pi05_runtime.engines.graph import Graph, capture
from pi05_runtime.engines.plan import PlanLaunch, PlanProgram
from pi05_runtime.plan import Launch, PlanFile, Weight, read_plan
from validate.benchmark.floors import Chip, Cost
from validate.benchmark.networks import Networks
from validate.benchmark.results import Launches

WARM_UP, REPEATS = 3, 25
LAUNCHES = 50
"""Of a row, in one graph, so that what they take is more than a clock's grain."""
EVICTED = 128 << 20
"""Bytes that leave nothing in a cache of what was read before them."""


@dataclass(frozen=True)
class Row:
    """launches: index in the network -> launch. kernel: the function of the variant that is used."""

    name: str
    kernel: str
    launches: Mapping[int, Launch]


def rows_of(file: PlanFile, launches: Sequence[Launch], chosen: Mapping[str, int]) -> list[Row]:
    """chosen: group of launches -> variant, where it is not the first."""
    found: dict[tuple[str, str], dict[int, Launch]] = {}
    for i, launch in enumerate(launches):
        found.setdefault((_kind(launch), launch.group), {})[i] = launch
    rows: list[Row] = []
    for (name, group), same in found.items():
        variant = next(iter(same.values())).variants[chosen.get(group, 0)]
        rows.append(Row(name, file.plan.kernels[variant.kernel].entry, same))
    return rows


def kernel_table(
    networks: Networks,
    program: PlanProgram,
    files: Mapping[str, Path],
    choices: Mapping[str, Mapping[str, int]],
    costs: Mapping[str, Mapping[str, Cost]],
    steps: int,
    chip: Chip | None,
) -> tuple[Launches, ...]:
    """files, choices: of the program. costs: network -> floors.parts of it. steps: denoise's in a decision.

    Errors: EngineError.
    """
    timed = {n: _timed(networks, program, n, files[n], choices.get(n, {})) for n in networks.names}
    times = {n: steps if n == "denoise" else 1 for n in networks.names}
    total = sum(ms * times[n] for n, rows in timed.items() for _, ms in rows)
    found: list[Launches] = []
    for network, rows in timed.items():
        for row, ms in rows:
            each = ms / len(row.launches) * 1e3
            # They are all alike.
            counted = costs[network].get(next(iter(row.launches.values())).name)
            floor, bound = (counted.milliseconds(chip) if counted and chip else None) or (None, None)
            found.append(
                Launches(
                    network=network,
                    name=row.name,
                    kernel=row.kernel,
                    launches=len(row.launches),
                    each_us=each,
                    decision_ms=ms * times[network],
                    share=ms * times[network] / total if total else 0.0,
                    floor_us=floor * 1e3 if floor else None,
                    bound=bound,
                    distance=each / (floor * 1e3) if floor and each else None,
                )
            )
    return tuple(found)


def _kind(launch: Launch) -> str:
    """Its name without the layer's number."""
    return re.sub(r"^layers\.\d+\.", "", launch.name)


def _timed(
    networks: Networks, program: PlanProgram, network: str, path: Path, chosen: Mapping[str, int]
) -> list[tuple[Row, float]]:
    """Each row with milliseconds of a pass over it."""
    file, shapes = read_plan(path), networks.shapes(network)
    launches = next(s.launches for s in file.plan.shaped if s.shapes == shapes)
    bound = [program.bind_launches(network, [la], chosen.get(la.group, 0)) for la in launches]
    read = [_weights(file, launch) for launch in launches]
    rows = rows_of(file, launches, chosen)
    found: list[tuple[Row, float]] = []
    for row in progress(rows, desc=f"{network}, kernel by kernel", unit="row", leave=False):
        # The arena then holds what the network itself leaves there.
        _enqueue(bound, networks.addresses(network), networks.stream)
        networks.device.synchronize(networks.stream)
        before = [bound[i] for i in evicting(read, row.launches)]
        found.append((row, _measure(networks, network, before, [bound[i] for i in row.launches])))
    return found


def _weights(file: PlanFile, launch: Launch) -> int:
    """Bytes of the weights that it reads: its layer's have its name; it may ask for those of others."""
    names = [a.name for a in launch.arguments if isinstance(a, Weight)]
    return sum(file.places[name][1] for name in names if name.startswith(launch.name))


def evicting(read: Sequence[int], row: Collection[int]) -> list[int]:
    """The fewest launches beside the row's that read EVICTED bytes, or all of them, in their order. read:
    bytes of each launch of the network."""
    found: list[int] = []
    for i in sorted(set(range(len(read))) - set(row), key=lambda i: -read[i]):
        if sum(read[j] for j in found) >= EVICTED:
            break
        found.append(i)
    return sorted(found)


def _measure(
    networks: Networks, network: str, before: Sequence[PlanLaunch], row: Sequence[PlanLaunch]
) -> float:
    """Milliseconds of a pass over the row after those before it: the median of what a replay with it takes
    more than one without, the two in turn, because clocks drift. 0 where that is lost in the noise."""
    device, stream, passes = networks.device, networks.stream, max(LAUNCHES // len(row), 1)
    differences: list[float] = []

    def replay(graph: Graph) -> float:
        start = time.perf_counter()
        graph.launch(stream)
        device.synchronize(stream)
        return time.perf_counter() - start

    def captured(launches: Sequence[PlanLaunch]) -> Graph:
        work = partial(_enqueue, [*launches] * passes, networks.addresses(network))
        return capture(device, stream, work, "a measurement")

    with closing(captured(before)) as without, closing(captured([*before, *row])) as whole:
        for _ in range(WARM_UP + REPEATS):
            differences.append(-replay(without) + replay(whole))
    return max(statistics.median(differences[WARM_UP:]), 0.0) / passes * 1e3


def _enqueue(launches: Sequence[PlanLaunch], addresses: Mapping[str, int], stream: int) -> None:
    for launch in launches:
        launch(addresses, stream)
