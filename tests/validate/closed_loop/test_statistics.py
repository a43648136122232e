"""Figures that others published or that a hand can check."""

import math

import pytest

from validate.closed_loop.statistics import mcnemar, rate, spread


@pytest.mark.parametrize(
    ("count", "of", "low", "high"),
    [
        # By hand, z = 1.959964: (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).
        (9, 9, 0.70086, 1.0),
        (0, 20, 0.0, 0.16113),
        (45, 50, 0.78640, 0.95653),
        (1, 1, 0.20655, 1.0),
    ],
)
def test_a_rate_has_wilsons_interval(count: int, of: int, low: float, high: float) -> None:
    found = rate(count, of)
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-5), pytest.approx(high, abs=1e-5))
    assert (found.count, found.of, found.share) == (count, of, count / of)


@pytest.mark.parametrize("count", range(11))
def test_the_interval_is_wilsons_formula(count: int) -> None:
    n, p, z = 10, count / 10, 1.959963984540054
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    found = rate(count, n)
    assert found.low == pytest.approx((middle - half) / (1 + z * z / n), abs=1e-12)
    assert found.high == pytest.approx((middle + half) / (1 + z * z / n), abs=1e-12)


@pytest.mark.parametrize("won", range(9))
@pytest.mark.parametrize("lost", range(9))
def test_the_p_value_is_twice_the_tail(won: int, lost: int) -> None:
    n, fewer = won + lost, min(won, lost)
    tail = sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n
    assert mcnemar(won, lost) == pytest.approx(min(1, 2 * tail))


def test_one_sided_losses_need_six_to_be_seen() -> None:
    assert mcnemar(0, 5) == 0.0625 and mcnemar(0, 6) == 0.03125 and mcnemar(0, 0) == 1


def test_a_spread_of_a_hundred_and_one_numbers() -> None:
    found = spread([float(x) for x in range(200, 99, -1)])
    assert found and (found.count, found.median, found.p99, found.max) == (101, 150, 199, 200)
    assert spread([]) is None


def test_nan_is_not_lost_in_a_spread() -> None:
    found = spread([0.0, float("nan"), 1.0])
    assert found and all(map(math.isnan, (found.median, found.p99, found.max)))
