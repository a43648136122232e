"""Capture and replay alone: any work, on a device that records calls."""

import pytest

from pi05_runtime.engines.graph import capture
from pi05_runtime.errors import EngineError
from tests.runtime.host_device import HostDevice


@pytest.fixture
def device() -> HostDevice:
    return HostDevice()


def test_capture_runs_nothing_and_every_launch_runs_all(device: HostDevice) -> None:
    ran: list[str] = []
    stream = device.create_stream()

    def work(stream: int) -> None:
        device.enqueue(lambda: ran.append("first"))
        device.enqueue(lambda: ran.append("second"))

    graph = capture(device, stream, work, "two calls")
    assert ran == []
    for _ in range(2):
        graph.launch(stream)
    assert ran == ["first", "second"] * 2
    graph.close()
    device.destroy_stream(stream)
    assert device.leaks == 0


@pytest.mark.parametrize("call", ["begin_capture", "synchronize", "end_capture", "instantiate"])
def test_failure_is_named_and_leaves_the_stream_usable(device: HostDevice, call: str) -> None:
    ran: list[str] = []
    stream = device.create_stream()

    def work(stream: int) -> None:
        if call == "synchronize":
            device.synchronize(stream)
        device.enqueue(lambda: ran.append("work"))

    if call != "synchronize":
        device.fail_on = call
    with pytest.raises(
        EngineError, match=rf"sequence: its CUDA graph could not be captured: {call}.*rebuild"
    ):
        capture(device, stream, work, "sequence")
    assert ran == [] and device.recording is None and len(device.handles) == 1
    device.enqueue(lambda: ran.append("later"))
    assert ran == ["later"]


def test_any_exception_ends_the_capture(device: HostDevice) -> None:
    def interrupted(stream: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture(device, device.create_stream(), interrupted, "sequence")
    assert device.recording is None and len(device.handles) == 1


def test_invalidated_capture_tells_both_errors(device: HostDevice) -> None:
    with pytest.raises(EngineError) as caught:
        capture(device, device.create_stream(), device.synchronize, "sequence")
    assert "CAPTURE_UNSUPPORTED" in str(caught.value)
    assert caught.value.__cause__ is not None
    assert "CAPTURE_INVALIDATED" in caught.value.__cause__.__notes__[0]
