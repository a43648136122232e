"""Capture and replay of a CUDA graph, whatever it is that gets captured.

A decision is hundreds of kernels; launched one by one they cost more on a robot's CPU than on its GPU, so
each sequence is recorded once and replayed with one call. What cannot be captured is an error: launching it
directly instead would be a policy of another latency than the one that was measured.
"""

from collections.abc import Callable

from pi05_runtime.engines.driver import Device
from pi05_runtime.errors import EngineError


class Graph:
    """A captured sequence, ready to launch. It reads and writes the addresses it was captured with."""

    def __init__(self, device: Device, executable: int) -> None:
        self._device, self._executable = device, executable

    def launch(self, stream: int) -> None:
        """Enqueues the whole sequence. Errors: EngineError."""
        self._device.launch(self._executable, stream)

    def close(self) -> None:
        self._device.destroy_executable(self._executable)


def capture(device: Device, stream: int, enqueue: Callable[[int], None], name: str) -> Graph:
    """Records what `enqueue(stream)` puts on the stream, without running it.

    `enqueue` must have run on this stream before: what a library allocates or compiles at its first call
    cannot be captured. name: of the sequence, for messages.
    Errors: EngineError if anything refuses; the stream then takes work as before.
    """
    try:
        graph = _record(device, stream, enqueue)
        try:
            return Graph(device, device.instantiate(graph, stream))
        finally:
            device.destroy_graph(graph)
    except EngineError as error:
        raise EngineError(
            f"{name}: its CUDA graph could not be captured: {error}; nothing was launched in its place, and "
            "this engine cannot act; run `pi05 rebuild` on this bundle, or choose another target"
        ) from error


def _record(device: Device, stream: int, enqueue: Callable[[int], None]) -> int:
    device.begin_capture(stream)
    try:
        enqueue(stream)
    except BaseException as cause:
        _abandon(device, stream, cause)
        raise
    return device.end_capture(stream)


def _abandon(device: Device, stream: int, cause: BaseException) -> None:
    """Ends a capture whose work failed, and drops what it recorded."""
    try:
        device.destroy_graph(device.end_capture(stream))
    except EngineError as error:
        # The driver refuses to give a graph of a capture that it invalidated itself.
        cause.add_note(f"capture ended with {error}")
