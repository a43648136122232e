"""Times whole decisions, one after the other and as a controller asks for them; every one is compared."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from export.stage import progress
from pi05_runtime import golden
from pi05_runtime.policy import Policy
from pi05_runtime.targets import find_target
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
    """Milliseconds of each call that counts, one after the other or one every `period_ms`."""
    samples: list[float] = []
    for i in progress(range(calls.warm_up + calls.repeats), desc=title, unit="call", leave=False):
        start = time.perf_counter()
        work()
        if i >= calls.warm_up:
            samples.append((time.perf_counter() - start) * 1e3)
        if period_ms is not None:
            time.sleep(max(start + period_ms / 1e3 - time.perf_counter(), 0))
    return samples


def time_decisions(
    policy: Policy, sample: Mapping[str, Any], target: str, calls: Calls, title: str
) -> Decisions:
    """Errors: GateError if actions differ where they must not."""
    limit = PowerLimit() if find_target(target).compute_capability is not None else None
    samples, inside = _asked(policy, sample, target, calls, title)
    capped = limit and limit.share()
    paced = None
    if statistics.median(samples) < PERIOD_MS:
        warm_up, repeats = PACED_CALLS
        some = Calls(min(calls.warm_up, warm_up), min(calls.repeats, repeats))
        title += f" every {PERIOD_MS} ms"
        paced = summarize(_asked(policy, sample, target, some, title, PERIOD_MS)[0], some.warm_up)
    return Decisions(samples, inside, paced, capped)


def _asked(
    policy: Policy,
    sample: Mapping[str, Any],
    target: str,
    calls: Calls,
    title: str,
    period_ms: float | None = None,
) -> tuple[list[float], dict[str, Timing]]:
    """Totals of whole calls of `infer`, and what the policy times within them; over `golden.in_turn`."""
    given: list[dict[str, Any]] = []
    observations = golden.in_turn(sample)
    samples = time_calls(lambda: given.append(policy.infer(next(observations))), calls, title, period_ms)
    golden.check_steady([one["actions"] for one in given], target)
    counted: list[dict[str, float]] = [one["timings"] for one in given[calls.warm_up :]]
    names = [name for name in counted[0] if name != "total"]
    parts = {name: summarize([c[name] for c in counted], calls.warm_up) for name in names}
    return samples, parts
