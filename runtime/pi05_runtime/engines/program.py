"""What the graph engine asks of compiled networks, whatever compiled them."""

from collections.abc import Collection, Mapping
from typing import Protocol

from pi05_runtime.engines.frames import Stager

Shapes = Mapping[str, tuple[int, ...]]
"""Of ports, by name."""


class Launch(Protocol):
    """One network at fixed shapes. Called, it enqueues: it waits for nothing, and from its second call on it
    allocates nothing either. Errors: EngineError."""

    def __call__(self, addresses: Mapping[str, int], stream: int) -> None: ...


class Program(Protocol):
    """Compiled networks by name: `denoise`, and `vision` and `prefill` or `prefix` in their place; for `run`
    any of them."""

    @property
    def networks(self) -> Collection[str]: ...

    def bind(self, network: str, shapes: Shapes, stream: int) -> Launch:
        """The network at these shapes of all its ports, to be launched on `stream`.

        Errors: EngineError for shapes that it was not compiled for.
        """
        ...

    def bind_overlapped(
        self, networks: tuple[str, str], shapes: tuple[Shapes, Shapes], stream: int, beside: int
    ) -> Launch | None:
        """Two networks as one launch on `stream`, over the ports of both: the second goes beside the first on
        a stream of its own, as soon as what it reads of it is there. None from a program whose networks can
        only follow each other.

        Errors: EngineError, as `bind`.
        """
        ...

    @property
    def stager(self) -> Stager | None:
        """What brings camera frames into the model's square, if it can."""
        ...

    def close(self) -> None: ...
