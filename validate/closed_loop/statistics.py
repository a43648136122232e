"""What a count of successes is worth: its interval, and whether two policies in the same scenes differ.

Nine successes of nine are a rate between 70 and 100%. Two policies that saw the same scenes and the same
noise are compared where they ended differently, which needs far fewer scenes than two rates side by side.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
from scipy.stats import binomtest


class Rate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """count of `of`. low, high: Wilson's interval at 95%."""

    count: int
    of: int
    low: float
    high: float

    @property
    def share(self) -> float:
        return self.count / self.of


class Spread(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of `count` numbers."""

    count: int
    median: float
    p99: float
    max: float


def rate(count: int, of: int) -> Rate:
    """of: at least 1."""
    interval = binomtest(count, of).proportion_ci(0.95, "wilson")
    return Rate(count, of, float(interval.low), float(interval.high))


def mcnemar(won: int, lost: int) -> float:
    """The probability of a split at least this uneven among the scenes that ended differently, if neither
    policy were better: McNemar's exact test, two-sided. 1 where none did."""
    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def spread(numbers: Sequence[float]) -> Spread | None:
    """None of no numbers. NaN among them makes all of it NaN."""
    if not numbers:
        return None
    median, p99, largest = (float(x) for x in np.quantile(numbers, (0.5, 0.99, 1)))
    return Spread(len(numbers), median, p99, largest)
