"""The ring of tiles between pingpong.py's fetching warp and its two groups, in any order of what may happen.

Nothing interprets Gluon, so the barriers' rules are played here with the kernel's own arithmetic: a barrier
lets through who names the phase before the one that it is in, and it knows phases by their last bit alone.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from export.kernels.pingpong import arrival

STAGES, GROUPS = 3, 2
Arrival = Callable[[int, int], tuple[int, int]]


class Ring:
    """phases: of each barrier, how many have ended. slots: the turn whose tile is there."""

    def __init__(self, arrival: Arrival, tiles: int) -> None:
        self.arrival, self.tiles = arrival, tiles
        self.full, self.empty = [0] * 2 * STAGES, [0] * STAGES
        self.slots: list[int | None] = [None] * STAGES
        self.arriving: list[int] = []

    def fetch(self) -> Iterator[bool]:
        """Yields whether it can go on."""
        for turn in range(self.tiles):
            while not passes(self.empty[turn % STAGES], (turn // STAGES & 1) ^ 1):
                yield False
            self.arriving.append(turn)
            yield True

    def arrive(self, turn: int) -> None:
        """Tiles may come in another order than they were asked for."""
        self.arriving.remove(turn)
        self.slots[turn % STAGES] = turn
        self.full[self.arrival(turn, STAGES)[0]] += 1

    def attend(self, group: int) -> Iterator[bool]:
        for turn in range(group, self.tiles, GROUPS):
            bar, phase = self.arrival(turn, STAGES)
            while not passes(self.full[bar], phase):
                yield False
            yield True
            assert self.slots[turn % STAGES] == turn
            self.empty[turn % STAGES] += 1
            yield True


def passes(ended: int, phase: int) -> bool:
    return ended & 1 != phase


def play(arrival: Arrival, tiles: int, seed: int) -> None:
    """One order of events, whichever chance takes. Errors: AssertionError for a tile that is not there."""
    generator, ring = np.random.default_rng(seed), Ring(arrival, tiles)
    running = {"fetch": ring.fetch(), **{str(group): ring.attend(group) for group in range(GROUPS)}}
    stuck: set[str] = set()
    while running:
        assert ring.arriving or stuck < running.keys(), "everybody waits"
        choices = [*sorted(running.keys() - stuck), *ring.arriving]
        chosen = choices[generator.integers(len(choices))]
        if isinstance(chosen, int):
            ring.arrive(chosen)
            stuck.clear()
            continue
        able = next(running[chosen], None)
        if able is None:
            del running[chosen]
        if able is False:
            stuck.add(chosen)
        else:
            stuck.clear()


@pytest.mark.parametrize("tiles", [2, 3, 4, 9, 16])
def test_a_group_multiplies_the_tile_of_its_turn(tiles: int) -> None:
    for seed in range(500):
        play(arrival.fn, tiles, seed)


def test_a_barrier_that_both_groups_wait_for_lets_one_through_too_early() -> None:
    def shared(turn: int, stages: int) -> tuple[int, int]:
        return turn % stages, turn // stages & 1

    with pytest.raises(AssertionError):
        for seed in range(500):
            play(shared, 9, seed)
