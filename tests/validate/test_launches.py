"""Launches timed on a device whose clock the test sets, and whose cache holds what was read last."""

from collections import deque
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save_file

from pi05_runtime.engines import plan as plan_module
from pi05_runtime.engines.plan import PlanProgram
from pi05_runtime.plan import METADATA, Int, Kernel, Launch, Plan, Port, Shaped, Variant, Weight
from tests.runtime.host_device import SIGNATURES, example, schedule
from tests.runtime.test_tuned import IMAGES, ClockedDevice
from validate.benchmark import launches
from validate.benchmark.floors import Chip, Cost
from validate.benchmark.launches import evicting, kernel_table
from validate.benchmark.networks import Networks
from validate.benchmark.results import Launches

MICROSECONDS = {b"slow": 30.0, b"fast": 10.0, b"middle": 20.0}
CACHED = 3
"""Weights that the device's cache holds, which takes half the time: no more than one row."""
SIZE = 1 << 10
LAYERS = 3
CHIP = Chip("a chip", 1e9, {"bf16": 1e12}, "the test")


class CachingDevice(ClockedDevice):
    """A launch reads one weight, its first argument."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: deque[int] = deque(maxlen=CACHED)
        self.order: list[int] = []

    def launch_kernel(self, kernel: int, grid: Any, threads: int, shared: int, given: Any, *_: int) -> None:
        (weight, *_), _ = given
        self.enqueue(lambda: self.read(MICROSECONDS[self.modules[kernel]] / 1e6, weight))

    def read(self, seconds: float, weight: int) -> None:
        self.order.append(weight)
        self.spend(seconds / 2 if weight in self.cache else seconds)
        self.cache.append(weight)


def write_plan(path: Path, component: str, shapes: dict[str, tuple[int, ...]]) -> None:
    """Three layers of `a`, which has a choice, and `b`, which has none; and one launch that has no layer."""
    kernels = tuple(Kernel(name.decode(), f"the {name.decode()} one", 0, 128) for name in MICROSECONDS)
    slow, fast, middle = (Variant(i, (1, 1, 1)) for i in range(len(kernels)))
    port = Port(next(iter(shapes)))

    def launch(name: str, *variants: Variant) -> Launch:
        return Launch(name, variants, (Weight(name), port, Int(1)))

    found: list[Launch] = []
    for i in range(LAYERS):
        found += [launch(f"layers.{i}.a", slow, fast), launch(f"layers.{i}.b", middle)]
    found.append(launch("last", middle))
    weights = {la.name: np.zeros(SIZE, np.uint8) for la in found}
    images = {name.decode(): image for name, image in IMAGES.items()}
    plan = Plan(component, "9.0", kernels, (Shaped(shapes, tuple(found), 64),))
    save_file(images | weights, path, {METADATA: msgspec.json.encode(plan).decode()})


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> CachingDevice:
    clocked = CachingDevice()
    monkeypatch.setattr(plan_module, "compute_capability", lambda: "9.0")
    monkeypatch.setattr(launches.time, "perf_counter", lambda: clocked.now)
    return clocked


def table(
    device: CachingDevice, folder: Path, choices: dict[str, dict[str, int]], steps: int, chip: Chip | None
) -> dict[tuple[str, str], Launches]:
    inputs, noise = example()
    arrays: dict[str, Any] = {
        "images": inputs.images,
        "prompt_embeddings": inputs.prompt.embeddings,
        "prefix_length": np.asarray(inputs.prompt.prefix_length, np.int32),
        "x": noise,
    }
    sizes = {"prompt": 5, "prefix": 2 * 4 + 5}
    files: dict[str, Path] = {}
    for network in ("vision", "prefill", "denoise"):
        files[network] = folder / f"{network}.plan"
        ports = (*SIGNATURES[network].inputs, *SIGNATURES[network].outputs)
        shapes = {p.name: tuple(sizes.get(str(n)) or int(n) for n in p.shape) for p in ports}
        write_plan(files[network], network, shapes)
    # What `a` must do, in 4 us; of `b` nothing is known.
    costs = {n: {f"layers.{i}.a": Cost({"bf16": 4000}, 0, {"bf16": 1}) for i in range(LAYERS)} for n in files}
    with ExitStack() as held:
        program = PlanProgram(files, SIGNATURES, device, choices)
        held.callback(program.close)
        networks = Networks(device, program, SIGNATURES, arrays, (), schedule, held)
        device.order.clear()
        found = kernel_table(networks, program, files, choices, costs, steps, chip)
    assert device.leaks == 0
    return {(la.network, la.name): la for la in found}


TUNED = {"denoise": {"0@1x1x1 1@1x1x1": 1}}


def test_all_launches_are_rows_with_the_time_of_their_variant(device: CachingDevice, tmp_path: Path) -> None:
    found = table(device, tmp_path, TUNED, 10, CHIP)
    assert [(key, la.launches) for key, la in found.items()] == [
        ((network, name), count)
        for network in ("vision", "prefill", "denoise")
        for name, count in (("a", LAYERS), ("b", LAYERS), ("last", 1))
    ]
    # The first variant where none was chosen.
    assert found["prefill", "a"].kernel == "the slow one" and found["denoise", "a"].kernel == "the fast one"
    assert found["denoise", "b"].kernel == found["denoise", "last"].kernel == "the middle one"
    assert found["prefill", "a"].each_us == pytest.approx(30)
    assert found["denoise", "a"].each_us == pytest.approx(10)
    assert found["denoise", "last"].each_us == pytest.approx(20)


def test_a_decision_has_denoise_once_a_step(device: CachingDevice, tmp_path: Path) -> None:
    found = table(device, tmp_path, TUNED, 10, CHIP)
    assert found["vision", "a"].decision_ms == pytest.approx(3 * 0.030)
    assert found["denoise", "a"].decision_ms == pytest.approx(10 * 3 * 0.010)
    total = 2 * 0.170 + 10 * 0.110
    assert sum(la.decision_ms for la in found.values()) == pytest.approx(total)
    assert found["denoise", "a"].share == pytest.approx(0.3 / total)


def test_the_floor_is_that_of_one_launch(device: CachingDevice, tmp_path: Path) -> None:
    found = table(device, tmp_path, TUNED, 10, CHIP)
    one = found["denoise", "a"]
    assert one.floor_us == pytest.approx(4) and one.bound == "memory" and one.distance == pytest.approx(2.5)
    other = found["denoise", "b"]
    assert other.floor_us is other.bound is other.distance is None


def test_without_a_chip_no_launch_has_a_floor(device: CachingDevice, tmp_path: Path) -> None:
    found = table(device, tmp_path, {}, 1, None)
    assert {(la.floor_us, la.distance) for la in found.values()} == {(None, None)}


def test_a_row_does_not_find_its_weights_in_the_cache(
    device: CachingDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold = table(device, tmp_path, {}, 1, CHIP)
    assert cold["vision", "last"].each_us == pytest.approx(20)
    monkeypatch.setattr(launches, "EVICTED", 0)
    warm = table(device, tmp_path, {}, 1, CHIP)
    assert warm["vision", "last"].each_us < 11


def test_a_pass_goes_through_a_row_in_its_order(
    device: CachingDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launches, "EVICTED", 0)
    table(device, tmp_path, {}, 1, CHIP)
    # Of vision: the network as it is, then the layers of `a` again and again.
    network = device.order[: 2 * LAYERS + 1]
    row = network[0 : 2 * LAYERS : 2]
    assert len(set(network)) == len(network)
    assert device.order[len(network) : len(network) + 2 * LAYERS] == row * 2


def test_what_comes_before_is_as_few_launches_as_will_do() -> None:
    half, all_of_it = launches.EVICTED // 2, launches.EVICTED
    assert evicting([half, 1, half, half], {0}) == [2, 3]
    assert evicting([1, half, all_of_it, half], {0}) == [2]
    assert evicting([1, 2, 3], {1}) == [0, 2] and evicting([1, 2], {0, 1}) == []
