"""What goes wrong on the way to a Hub, to be put before a test's requests."""

from dataclasses import dataclass, field


@dataclass
class Fault:
    """Happens to the next `times` requests whose "METHOD /path" the pattern `where` is found in."""

    where: str
    times: int = field(default=1, kw_only=True)


@dataclass
class Cut(Fault):
    """The connection ends after so many bytes of the body, of the answer's or of an upload's."""

    after: int


@dataclass
class Corrupt(Fault):
    """The body keeps its size, and one bit in its middle flips."""


@dataclass
class Refuse(Fault):
    """An answer such as 429 or 503 instead of the one asked for."""

    status: int
    retry_after: int | None = None


@dataclass
class Overtake(Fault):
    """Another person's commit lands first, so that the parent of this one is stale."""
