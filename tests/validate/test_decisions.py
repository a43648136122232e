"""What counts as a measurement of decisions: back to back or paced, and each the same as before."""

import time
from collections.abc import Callable
from itertools import count

import numpy as np
import pytest

from pi05_runtime.errors import GateError
from pi05_runtime.policy import Policy
from tests.kernels.interpreting_device import InterpretingDevice
from validate.benchmark import clocks
from validate.benchmark.decisions import Calls, time_calls
from validate.benchmark.floors import CHIPS
from validate.benchmark.measure import Subject, measure

H100 = CHIPS[0]


def test_decisions_that_differ_are_no_measurement(
    subject: Subject, interpreted: list[InterpretingDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Policy, "infer", deciding(lambda turn: turn == 4))
    with pytest.raises(GateError, match=r"sm90-plan failed: 1 of 5 decisions gave other actions"):
        list(measure(subject, (1,), Calls(2, 3), H100))


def test_decisions_faster_than_a_controller_are_paced_too(
    subject: Subject, interpreted: list[InterpretingDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    capped = iter([1_000_000, 1_000_000 + 10**9])
    monkeypatch.setattr(clocks, "capped_us", lambda: next(capped))
    monkeypatch.setattr(Policy, "infer", deciding(lambda _: False))
    (steps,) = next(measure(subject, (1,), Calls(1, 3), H100)).steps
    assert steps.paced and (steps.paced.warm_up, steps.paced.repeats) == (1, 3)
    assert steps.capped and steps.capped > 1
    monkeypatch.setattr(Policy, "infer", deciding(lambda turn: turn == 6))
    monkeypatch.setattr(clocks, "capped_us", lambda: None)
    with pytest.raises(GateError, match="1 of 4 decisions gave other actions"):
        next(measure(subject, (1,), Calls(1, 3), H100))


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


def test_paced_calls_begin_a_period_apart() -> None:
    begun: list[float] = []
    samples = time_calls(lambda: begun.append(time.perf_counter()), Calls(1, 3), "work", 10)
    assert len(samples) == 3 and min(np.diff(begun)) > 0.0099


def test_warm_up_calls_do_not_count() -> None:
    calls: list[float] = []

    def work() -> None:
        time.sleep(0.05 if len(calls) < 2 else 0)
        calls.append(0)

    samples = time_calls(work, Calls(2, 5), "work")
    assert len(calls) == 7 and len(samples) == 5 and max(samples) < 50
