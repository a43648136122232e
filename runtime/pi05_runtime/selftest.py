"""The self-test of a device: golden sample and latency, in a process of its own with a time limit.

An engine is a program that may crash or hang, and whatever decides about a bundle must outlive it: here it
is a child process that answers with a report or an error, and everything else it may do is a failed gate.
"""

import traceback
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np

from pi05_runtime import errors, golden
from pi05_runtime.child import Fault, run_child, serve
from pi05_runtime.errors import GateError, Pi05Error
from pi05_runtime.policy import Policy
from pi05_runtime.targets import find_target

_WARM_UP, _GPU_WARM_UP = 3, 300
_REPEATS, _GPU_REPEATS = 20, 200
"""Decisions. A GPU's clocks settle after about 300 calls (docs/thor.md)."""


class Latency(msgspec.Struct, frozen=True):
    """Of whole decisions, from images to actions, in milliseconds. steps: Euler steps of each. budget_ms: the
    most that the median may be, None where the bundle sets none."""

    steps: int
    warm_up: int
    repeats: int
    median_ms: float
    p99_ms: float
    budget_ms: float | None


class Report(msgspec.Struct, frozen=True, tag=True):
    """A self-test that passed. golden: the golden sample at each of its step counts."""

    target: str
    golden: tuple[golden.Result, ...]
    latency: Latency


class _Failed(msgspec.Struct, frozen=True, tag=True):
    """error: the name of a class of errors.py."""

    error: str
    message: str


class _Request(msgspec.Struct, frozen=True):
    bundle: str
    target: str
    engines: str | None


_Answer = Report | _Failed
_ANSWER: msgspec.json.Decoder[_Answer] = msgspec.json.Decoder(_Answer)


def selftest_isolated(bundle: Path, target: str, engines: Path | None, minutes: float) -> Report:
    """Verifies and loads the bundle in a child process, runs its golden sample and measures its latency.

    engines: as for `pi05_runtime.load`. minutes: the most that all of it may take.
    Errors: those of loading, of `golden.selftest` and of `golden.check_steady`; GateError too for a crash,
    the time limit and a median over the manifest's budget.
    """
    request = _Request(str(bundle.absolute()), target, None if engines is None else str(engines.absolute()))
    answer = run_child("pi05_runtime.selftest", request, _ANSWER, minutes, quiet=False)
    match answer:
        case Fault(text):
            raise GateError(
                f"self-test of {target} failed: {text} found, an answer expected; "
                "do not run this bundle on a robot, and see above what the process wrote"
            )
        case _Failed(error, message):
            raise _error_class(error)(message)
        case Report():
            _check_budget(answer)
            return answer


def _check_budget(report: Report) -> None:
    found = report.latency
    if found.budget_ms is not None and found.median_ms > found.budget_ms:
        raise GateError(
            f"self-test of {report.target} failed: a median of {found.median_ms:.1f} ms over {found.repeats} "
            f"decisions of {found.steps} steps found, at most {found.budget_ms:g} ms expected; close other "
            "programs, look at the power mode with `pi05 doctor`, then test again"
        )


def _error_class(name: str) -> type[Pi05Error]:
    found = getattr(errors, name, GateError)
    return found if isinstance(found, type) and issubclass(found, Pi05Error) else GateError


def _test(request: _Request) -> _Answer:
    engines = None if request.engines is None else Path(request.engines)
    try:
        return _pass(Path(request.bundle), request.target, engines)
    except Pi05Error as error:
        return _Failed(type(error).__name__, str(error))
    except Exception as error:  # a gate that cannot run has failed
        traceback.print_exc()
        text = f"self-test of {request.target} failed: {type(error).__name__}: {error}"
        return _Failed(GateError.__name__, f"{text}; do not run this bundle on a robot")


def _pass(bundle: Path, target: str, engines: Path | None) -> Report:
    with Policy.load(bundle, target, engines=engines) as policy:
        results = golden.judge(policy, bundle, target)
        return Report(target, tuple(results), measure_latency(policy, bundle, target))


def measure_latency(policy: Policy, bundle: Path, target: str) -> Latency:
    """At the default step count. Errors: those of `Policy.infer` and of `golden.check_steady`."""
    manifest = policy.manifest
    on_cpu = find_target(target).compute_capability is None
    warm_up, repeats = (_WARM_UP, _REPEATS) if on_cpu else (_GPU_WARM_UP, _GPU_REPEATS)
    policy.steps = manifest.default_steps
    sample, _ = golden.observation(bundle, manifest.golden.file, manifest.golden.prompt)
    given = [policy.infer(one) for one in islice(golden.in_turn(sample), warm_up + repeats)]
    golden.check_steady([one["actions"] for one in given], target)
    totals = [one["timings"]["total"] for one in given[warm_up:]]
    return Latency(
        steps=policy.steps,
        warm_up=warm_up,
        repeats=repeats,
        median_ms=float(np.median(totals)),
        p99_ms=float(np.quantile(totals, 0.99)),
        budget_ms=manifest.golden.budget_ms.get(target),
    )


if __name__ == "__main__":
    serve(_Request, _test)
