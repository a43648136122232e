"""Where intermediate results lie: each has a place for as long as a later launch reads it, and no longer.

All launches of a plan run one after another, so lifetimes are known and places are chosen once. Two results
that live at once never share a byte: `place` gives each the lowest gap that is free over its whole life.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pi05_runtime.plan import ALIGNMENT


@dataclass(frozen=True)
class Life:
    """size: bytes. first, last: the launches that write it first and read it last, both included."""

    size: int
    first: int
    last: int

    def meets(self, other: "Life") -> bool:
        return self.first <= other.last and other.first <= self.last


def place(lives: Sequence[Life]) -> tuple[list[int], int]:
    """(offset of each, bytes of the arena)."""
    offsets: dict[int, int] = {}
    for index in sorted(range(len(lives)), key=lambda i: (-lives[i].size, lives[i].first)):
        life, offset = lives[index], 0
        taken = sorted((offsets[i], offsets[i] + lives[i].size) for i in offsets if lives[i].meets(life))
        for start, end in taken:
            if offset + life.size <= start:
                break
            offset = max(offset, -(-end // ALIGNMENT) * ALIGNMENT)
        offsets[index] = offset
    ends = [offsets[i] + life.size for i, life in enumerate(lives)]
    return [offsets[i] for i in range(len(lives))], max(ends, default=0)
