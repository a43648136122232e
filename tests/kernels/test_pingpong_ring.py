"""The rings of tiles between pingpong.py's fetching warp and its two groups, in many orders of events.

Nothing interprets Gluon, so what the kernel does with its barriers stands here again, with its own arithmetic
of which barrier and phase a tile has. A barrier lets through who names the phase before the one that it is
in, and it knows phases by their last bit alone.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from export.kernels.pingpong import arrival

STAGES, GROUPS, ORDERS = 3, 2, 500
Arrival = Callable[[int, int], tuple[int, int]]


class WrongTile(Exception):
    """A group was let through before its tile had come."""


class Ring:
    """Of keys or of values. full, empty: of each barrier, how many phases have ended. slots: the turn whose
    tile is there. coming: turns that were asked for."""

    def __init__(self, arrival: Arrival) -> None:
        self.arrival = arrival
        self.full, self.empty = [0] * 2 * STAGES, [0] * STAGES
        self.slots: list[int | None] = [None] * STAGES
        self.coming: list[int] = []

    def fetch(self, turn: int) -> Iterator[bool]:
        """Yields whether it can go on."""
        while not passes(self.empty[turn % STAGES], (turn // STAGES & 1) ^ 1):
            yield False
        self.coming.append(turn)
        yield True

    def arrive(self, turn: int) -> None:
        self.coming.remove(turn)
        self.slots[turn % STAGES] = turn
        self.full[self.arrival(turn, STAGES)[0]] += 1

    def take(self, turn: int) -> Iterator[bool]:
        bar, phase = self.arrival(turn, STAGES)
        while not passes(self.full[bar], phase):
            yield False
        yield True
        if self.slots[turn % STAGES] != turn:
            raise WrongTile

    def release(self, turn: int) -> None:
        self.empty[turn % STAGES] += 1


def passes(ended: int, phase: int) -> bool:
    return ended & 1 != phase


def fetch(keys: Ring, values: Ring, tiles: int) -> Iterator[bool]:
    for turn in range(tiles + 1):
        if turn < tiles:
            yield from keys.fetch(turn)
        if turn:
            yield from values.fetch(turn - 1)


def attend(keys: Ring, values: Ring, tiles: int, group: int) -> Iterator[bool]:
    yield from keys.take(group)
    keys.release(group)
    last = group
    for turn in range(group + GROUPS, tiles, GROUPS):
        yield from keys.take(turn)
        yield from values.take(last)
        keys.release(turn)
        yield True
        values.release(last)
        last = turn
    yield from values.take(last)


def play(arrival: Arrival, tiles: int, seed: int) -> None:
    """One order of events, whichever chance takes; tiles come in another than they were asked for in."""
    generator, keys, values = np.random.default_rng(seed), Ring(arrival), Ring(arrival)
    running = {"fetch": fetch(keys, values, tiles)}
    running |= {str(group): attend(keys, values, tiles, group) for group in range(GROUPS)}
    stuck: set[str] = set()
    while running:
        coming = [(ring, turn) for ring in (keys, values) for turn in ring.coming]
        choices = [*sorted(running.keys() - stuck), *coming]
        assert choices, "everybody waits"
        chosen = choices[generator.integers(len(choices))]
        if isinstance(chosen, tuple):
            ring, turn = chosen
            ring.arrive(turn)
            stuck.clear()
        elif (able := next(running[chosen], None)) is False:
            stuck.add(chosen)
        else:
            stuck.clear()
            if able is None:
                del running[chosen]


@pytest.mark.parametrize("tiles", [2, 3, 4, 9, 16])
def test_a_group_multiplies_the_tile_of_its_turn(tiles: int) -> None:
    for seed in range(ORDERS):
        play(arrival.fn, tiles, seed)


@pytest.mark.parametrize("tiles", [4, 9, 16])
def test_a_barrier_that_both_groups_wait_for_lets_one_through_too_early(tiles: int) -> None:
    def shared(turn: int, stages: int) -> tuple[int, int]:
        return turn % stages, turn // stages & 1

    with pytest.raises(WrongTile):
        for seed in range(ORDERS):
            play(shared, tiles, seed)
