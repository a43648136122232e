"""Networks apart on a device of host memory, and what a decision does besides them."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from pi05_runtime.engines.frames import View
from pi05_runtime.interface import Convention
from tests.runtime.host_device import (
    HORIZON,
    SIGNATURES,
    SPLIT,
    VIEWS,
    HostDevice,
    HostProgram,
    at,
    example,
    schedule,
)
from validate.benchmark.networks import Networks
from validate.benchmark.results import OVERLAPPED

SIZE = 4


class Dimmer:
    """A stager of frames that have the size already: every pixel over 255."""

    size: int = SIZE
    convention: Convention = "openpi"

    def __init__(self, device: HostDevice) -> None:
        self.device = device

    def __call__(self, view: View, out: int, stream: int) -> None:
        def work() -> None:
            frame = at(view.frame, SIZE * SIZE * 3).reshape(SIZE, SIZE, 3).transpose(2, 0, 1)
            at(out, frame.size * 4).view(np.float32)[:] = (frame / np.float32(255)).ravel()

        self.device.enqueue(work)


class StagingProgram(HostProgram):
    @property
    def stager(self) -> Any:
        return Dimmer(self.device)


@pytest.fixture
def device() -> HostDevice:
    return HostDevice()


@pytest.fixture(params=[HostProgram, StagingProgram])
def networks(device: HostDevice, request: pytest.FixtureRequest) -> Iterator[Networks]:
    with ExitStack() as held:
        yield opened(request.param(device, SPLIT, SIGNATURES), held)
    assert device.leaks == 0


def opened(program: HostProgram, held: ExitStack) -> Networks:
    inputs, noise = example()
    arrays: dict[str, Any] = {
        "images": inputs.images,
        "prompt_embeddings": inputs.prompt.embeddings,
        "prefix_length": np.asarray(inputs.prompt.prefix_length, np.int32),
        "x": noise,
    }
    frames = [np.full((SIZE, SIZE, 3), 51 * (i + 1), np.uint8) for i in range(VIEWS)]
    return Networks(program.device, program, SIGNATURES, arrays, frames, schedule, held)


def test_copies_bring_all_that_a_decision_is_given(networks: Networks, device: HostDevice) -> None:
    work = networks.outside()
    assert work.keys() == {"images", "prompt"}
    addresses = networks.addresses("vision") | networks.addresses("prefill") | networks.addresses("denoise")
    inputs, noise = example()
    images = at(addresses["images"], VIEWS * 3 * SIZE**2 * 4).view(np.float32).reshape(VIEWS, 3, SIZE, SIZE)
    x, length = at(addresses["x"], noise.nbytes).view(np.float32), at(addresses["prefix_length"], 4)
    for memory in (images, x, length):
        memory[:] = 0
    for pinned in device.pinned.values():
        pinned[:] = 0
    staged = networks.program.stager is not None
    before = device.calls.copy()
    work["images"]()
    # The host's own are copied within the graph.
    uploads = {"upload": VIEWS} if staged else {}
    assert device.calls - before == {**uploads, "launch": 1, "synchronize": 1} and not x.any()
    before = device.calls.copy()
    work["prompt"]()
    assert device.calls - before == {"upload": 1, "download": 1, "synchronize": 1}
    np.testing.assert_array_equal(x, noise.ravel())
    assert length.view(np.int32)[0] == inputs.prompt.prefix_length
    if staged:
        np.testing.assert_allclose(images[1], 0.4, rtol=1e-6)
    else:
        np.testing.assert_array_equal(images, inputs.images)
    # The chunk comes back too.
    assert any(pinned.tobytes() == noise.tobytes() for pinned in list(device.pinned.values())[-1:])


def test_a_replay_is_one_launch(networks: Networks, device: HostDevice) -> None:
    launched: list[str] = []
    assert isinstance(networks.program, HostProgram)
    networks.program.on_launch = launched.append
    replays = networks.replays(3)
    assert launched == ["vision", "prefill", *["denoise"] * 3]
    before = device.calls.copy()
    for replay in replays.values():
        replay()
    assert device.calls - before == {"launch": 3, "synchronize": 3}
    again = networks.replays(1)
    assert launched[5:] == ["denoise"] and again.keys() == replays.keys()


def test_prefill_and_a_step_are_replayed_as_one(device: HostDevice) -> None:
    with ExitStack() as held:
        networks = opened(HostProgram(device, SPLIT, SIGNATURES, overlaps=True), held)
        replays = networks.replays(2)
        assert list(replays) == ["vision", "prefill", "denoise", OVERLAPPED]
        made = at(networks.addresses("denoise")["x_next"], HORIZON * 2 * 4).view(np.float32)
        expected = made.copy()
        made[:] = 0
        before = device.calls.copy()
        replays[OVERLAPPED]()
        assert device.calls - before == {"launch": 1, "synchronize": 1}
        np.testing.assert_array_equal(made, expected)
