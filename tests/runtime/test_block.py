"""What crosses to the device in one copy."""

from contextlib import ExitStack

import numpy as np

from pi05_runtime.engines.buffers import ALIGNMENT, Block
from tests.runtime.host_device import HostDevice, at


def test_arrays_cross_together_and_each_is_aligned() -> None:
    device, sizes = HostDevice(), {"prompt": 300, "length": 4, "x": 1000}
    with ExitStack() as held:

        def alloc(size: int) -> int:
            address = device.alloc(size)
            held.callback(device.free, address)
            return address

        block = Block(device, sizes, alloc, held)
        for i, (name, size) in enumerate(sizes.items(), 1):
            assert len(block.pinned[name]) == size
            block.pinned[name][:] = i
        block.upload(stream=0)
        assert device.calls["upload"] == 1
        first = block.addresses["prompt"]
        for i, (name, size) in enumerate(sizes.items(), 1):
            assert (block.addresses[name] - first) % ALIGNMENT == 0
            assert np.array_equal(at(block.addresses[name], size), np.full(size, i, np.uint8))
    assert not device.memory and not device.pinned
