"""Times whole decisions, one after the other and as a controller asks for them; every one is compared."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from export.stage import progress
from pi05_runtime import golden
from pi05_runtime.policy import Policy
from validate.benchmark.clocks import PowerLimit
from validate.benchmark.results import PERIOD_MS, Timing, summarize

CPU_CALLS, GPU_CALLS = (5, 30), (300, 1000)
"""Warm-up calls, and calls that count. A GPU's clocks settle after about 300."""
PACED_CALLS = (20, 250)
"""As above, at most, for decisions that are asked for every PERIOD_MS."""


@dataclass(frozen=True)
class Calls:
    """How often, and until when: a step count that would begin after `deadline` is left out."""

    warm_up: int
    repeats: int
    deadline: float = float("inf")

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.deadline


@dataclass(frozen=True)
class Decisions:
    """Of one step count, as results.Steps has them."""

    samples: list[float]
    inside: dict[str, Timing]
    paced: Timing | None
    capped: float | None


def time_calls(
    work: Callable[[], object], calls: Calls, title: str, period_ms: float | None = None
) -> list[float]:
    """Milliseconds of each call that counts: one after the other, or each at a multiple of `period_ms` after
    the first."""
    samples: list[float] = []
    first = time.perf_counter()
    for i in progress(range(calls.warm_up + calls.repeats), desc=title, unit="call", leave=False):
        start = time.perf_counter()
        work()
        if i >= calls.warm_up:
            samples.append((time.perf_counter() - start) * 1e3)
        if period_ms is not None:
            time.sleep((first - time.perf_counter()) % (period_ms / 1e3))
    return samples


def time_decisions(
    policy: Policy, sample: Mapping[str, Any], target: str, bus: str | None, calls: Calls, title: str
) -> Decisions:
    """Whole calls of `infer`, over `golden.in_turn`. bus: of the GPU, if there is one.

    Errors: GateError if actions differ where they must not, of those without and with a pause.
    """
    given: list[dict[str, Any]] = []
    observations = golden.in_turn(sample)

    def ask() -> None:
        given.append(policy.infer(next(observations)))

    limit = PowerLimit(bus) if bus is not None else None
    samples = time_calls(ask, calls, title)
    capped = limit.share() if limit is not None else None
    counted: list[dict[str, float]] = [one["timings"] for one in given[calls.warm_up :]]
    names = [name for name in counted[0] if name != "total"]
    inside = {name: summarize([c[name] for c in counted], calls.warm_up) for name in names}
    paced = None
    if statistics.median(samples) < PERIOD_MS:
        warm_up, repeats = PACED_CALLS
        some = Calls(min(calls.warm_up, warm_up), min(calls.repeats, repeats))
        paced = summarize(time_calls(ask, some, f"{title} every {PERIOD_MS} ms", PERIOD_MS), some.warm_up)
    golden.check_steady([one["actions"] for one in given], target)
    return Decisions(samples, inside, paced, capped)
