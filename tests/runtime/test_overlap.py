"""The order in which two networks are enqueued that go side by side."""

from collections.abc import Collection, Mapping

import numpy as np
import pytest

from pi05_runtime.engines.overlap import Overlapped
from pi05_runtime.plan import Port
from tests.runtime.host_device import HostDevice

MAIN, BESIDE = 1, 2
Log = list[tuple[str, int]]


class Ordered(HostDevice):
    """Takes note of what follows what."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self.log = log

    def follow(self, stream: int, other: int) -> None:
        assert {stream, other} == {MAIN, BESIDE}
        self.log.append(("follow", stream))


class Named:
    """Launches that note their names, and a + where they may come early."""

    def __init__(self, log: Log, launches: Mapping[str, Collection[Port]]) -> None:
        self.log, self.launches = log, launches

    @property
    def ports(self) -> list[Collection[Port]]:
        return list(self.launches.values())

    def enqueue(self, part: slice, addresses: Mapping[str, int], stream: int, early: bool) -> None:
        assert addresses == {"keys": 8}
        for name in list(self.launches)[part]:
            self.log.append((name + "+" * early, stream))
            early = True


def keys(layer: int) -> set[Port]:
    return {Port("keys", 100 * layer), Port("length")}


def enqueued(first: Mapping[str, Collection[Port]], second: Mapping[str, Collection[Port]]) -> Log:
    log: Log = []
    ended: list[int] = []
    device = Ordered(log)
    launch = Overlapped(
        device, Named(log, first), Named(log, second), {"keys"}, BESIDE, lambda: ended.append(len(log))
    )
    launch({"keys": 8}, MAIN)
    assert ended == [len(log)] and device.calls == {}
    return log


FIRST = {"a": set(), "qkv0": keys(0), "attention0": keys(0), "b": set(), "qkv1": keys(1)}


def test_a_layer_comes_when_the_same_layer_of_the_other_is_there() -> None:
    second = {"in": {Port("length")}, "read0": keys(0), "mlp0": set(), "read1": keys(1), "out": set()}
    assert enqueued(FIRST, second) == [
        ("follow", BESIDE),
        ("in", BESIDE),
        ("a", MAIN),
        ("qkv0+", MAIN),
        ("attention0+", MAIN),
        ("follow", BESIDE),
        ("read0", BESIDE),
        ("mlp0+", BESIDE),
        ("b+", MAIN),
        ("qkv1+", MAIN),
        ("follow", BESIDE),
        ("read1", BESIDE),
        ("out+", BESIDE),
        ("follow", MAIN),
    ]


@pytest.mark.parametrize("place", [Port("keys", 50), Port("keys", 200)])
def test_a_place_that_nobody_writes_waits_for_all(place: Port) -> None:
    log = enqueued(FIRST, {"read": {place}})
    assert log[-3:] == [("follow", BESIDE), ("read", BESIDE), ("follow", MAIN)]
    assert [name for name, _ in log[:-3]] == ["a", "qkv0+", "attention0+", "b+", "qkv1+"]


def test_what_reads_an_earlier_layer_later_waits_no_more() -> None:
    log = enqueued(FIRST, {"read1": keys(1), "read0": keys(0)})
    assert log[-4:] == [("follow", BESIDE), ("read1", BESIDE), ("read0+", BESIDE), ("follow", MAIN)]


def test_a_second_that_reads_nothing_goes_first() -> None:
    log = enqueued(FIRST, {"in": set(), "out": set()})
    assert log[:3] == [("follow", BESIDE), ("in", BESIDE), ("out+", BESIDE)]
    # The other's launches overlap among themselves as ever.
    assert [name for name, _ in log[3:-1]] == ["a", "qkv0+", "attention0+", "b+", "qkv1+"]


def test_random_orders_keep_every_dependency() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        written, read = generator.integers(0, 5, 9), generator.integers(0, 6, 7)
        log = enqueued(
            {f"w{i}": keys(int(layer)) for i, layer in enumerate(written)},
            {f"r{i}": keys(int(layer)) for i, layer in enumerate(read)},
        )
        names = [name.rstrip("+") for name, _ in log]
        assert [n for n in names if n != "follow"].__len__() == 16
        for i, layer in enumerate(read):
            at = names.index(f"r{i}")
            joined = max(n for n, entry in enumerate(log[:at]) if entry == ("follow", BESIDE))
            wanted = [j for j, other in enumerate(written) if other == layer] or range(9)
            assert all(names.index(f"w{j}") < joined for j in wanted)
