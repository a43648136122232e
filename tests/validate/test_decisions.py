"""What counts as a measurement of decisions: back to back or paced, and each the same as before."""

import time
from collections.abc import Callable
from itertools import count

import numpy as np
import pytest

from pi05_runtime.errors import GateError
from pi05_runtime.policy import Policy
from tests.kernels.interpreting_device import InterpretingDevice
from tests.validate.conftest import BUS
from validate.benchmark import decisions as module
from validate.benchmark.decisions import PACED_CALLS, Calls, time_calls
from validate.benchmark.floors import CHIPS
from validate.benchmark.measure import Subject, measure

H100 = CHIPS[0]


def test_decisions_that_differ_are_no_measurement(
    subject: Subject, interpreted: list[InterpretingDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Policy, "infer", deciding(lambda turn: turn == 4))
    with pytest.raises(GateError, match=r"sm90-plan failed: 1 of 10 decisions gave other actions"):
        list(measure(subject, (1,), Calls(2, 3), H100))


def test_decisions_faster_than_a_controller_are_paced_too(
    subject: Subject, interpreted: list[InterpretingDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[tuple[int, int, float | None]] = []

    def counted(work: Callable[[], object], calls: Calls, title: str, period_ms: float | None = None):
        timed.append((calls.warm_up, calls.repeats, period_ms))
        return time_calls(work, calls, title)

    class Limit:
        def __init__(self, bus: str) -> None:
            assert bus == BUS and not timed

        def share(self) -> float:
            return 0.5 / len(timed)

    monkeypatch.setattr(module, "PowerLimit", Limit)
    monkeypatch.setattr(module, "time_calls", counted)
    monkeypatch.setattr(Policy, "infer", deciding(lambda _: False))
    (steps,) = next(measure(subject, (1,), Calls(21, 251), H100)).steps
    assert timed == [(21, 251, None), (20, 250, 20)] and PACED_CALLS == (20, 250)
    assert steps.capped == 0.5 and steps.paced
    assert (steps.paced.warm_up, steps.paced.repeats) == (20, 250)
    timed.clear()
    monkeypatch.setattr(module, "PERIOD_MS", 1e-6)
    (steps,) = next(measure(subject, (1,), Calls(1, 3), H100)).steps
    assert steps.paced is None


def test_decisions_after_a_pause_are_those_without(
    subject: Subject, interpreted: list[InterpretingDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Policy, "infer", deciding(lambda turn: turn > 5))
    with pytest.raises(GateError, match="5 of 10 decisions gave other actions"):
        next(measure(subject, (1,), Calls(2, 3), H100))


def deciding(wrong: Callable[[int], bool]) -> Callable[[Policy, object], dict[str, object]]:
    """An `infer` that takes no time. wrong: whether it gives other actions in this turn."""
    turns = count()

    def infer(self: Policy, observation: object) -> dict[str, object]:
        actions = np.zeros((4, 32), np.float32)
        actions[3, 1] = wrong(next(turns))
        return {"actions": actions, "timings": {"preprocess": 1.0, "decision": 1.0, "total": 2.0}}

    return infer


def test_nothing_begins_after_the_deadline() -> None:
    assert Calls(1, 1, time.monotonic() - 1).over and not Calls(1, 1).over


class Clock:
    """time, as far as it is used here; sleeping takes as long as it is to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_calls_are_timed_after_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, took = Clock(), iter([0.5, 0.25, 0.001, 0.002, 0.003])
    monkeypatch.setattr(module, "time", clock)
    samples = time_calls(lambda: clock.sleep(next(took)), Calls(2, 3), "work")
    assert samples == pytest.approx([1, 2, 3]) and clock.now == pytest.approx(1000.756)


def test_paced_calls_begin_at_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third takes longer than two of them."""
    clock, took, begun = Clock(), iter([0.004, 0.009, 0.025, 0.001]), list[float]()

    def work() -> None:
        begun.append(clock.now)
        clock.sleep(next(took))

    monkeypatch.setattr(module, "time", clock)
    samples = time_calls(work, Calls(1, 3), "work", 10)
    assert samples == pytest.approx([9, 25, 1])
    assert begun == pytest.approx([1000, 1000.01, 1000.02, 1000.05])
