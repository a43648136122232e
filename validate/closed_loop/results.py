"""The run's file and its table: each policy over each task, paired with the reference scene by scene.

A pair of which one half is missing says nothing, and leaving it out would let a crash pick the scenes. So an
incomplete run has no results, unless a partial report is asked for, which says of itself that it is one.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from pi05_runtime.staging import write_file
from validate.closed_loop.records import ClosedLoopError, Episode, Run, Scene, Store
from validate.closed_loop.statistics import Rate, Spread, mcnemar, rate, spread

SCHEMA = 1
FILE = "results.json"
TITLES = (
    "suite",
    "task",
    "policy",
    "success",
    "95% interval",
    "lost",
    "won",
    "p",
    "divergence",
    "p99",
    "max",
    "steps",
    "decision ms",
    "p99",
)
NAMED = 5
"""Missing episodes that a message names."""


class Pairs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of `scenes` that reference and policy both ran: those that only the reference solved, those that only
    the policy did, and McNemar's p value of that."""

    scenes: int
    lost: tuple[tuple[str, int], ...]
    won: tuple[tuple[str, int], ...]
    p: float


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One policy over a task, or over all tasks of the suite where `task` is None.

    pairs: None of the reference itself, and without one. divergence: over all decisions, see
    records.Episode; None likewise. steps: the median of the episodes that succeeded. errors: episodes that an
    exception ended.
    """

    suite: str
    task: str | None
    policy: str
    success: Rate
    pairs: Pairs | None
    divergence: Spread | None
    steps: float | None
    decision_ms: Spread | None
    errors: int


class Results(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """results.json. missing: episodes, `suite/task/scene/policy`, that were wanted and are not there."""

    schema: int
    run: Run
    missing: tuple[str, ...]
    rows: tuple[Row, ...]

    def row(self, suite: str, policy: str) -> Row:
        """Over all tasks."""
        return next(r for r in self.rows if (r.suite, r.task, r.policy) == (suite, None, policy))


def wanted(run: Run) -> Iterator[tuple[Scene, str]]:
    """Scene and policy of every episode of the run."""
    for suite, tasks in run.scenes.items():
        for task, numbers in tasks.items():
            for number in numbers:
                for policy in run.policies:
                    yield Scene(suite, task, number), policy


def read_episodes(out: Path, run: Run) -> list[Episode]:
    """The run's episodes that are in OUT, in its order. Errors: ClosedLoopError for a damaged file."""
    store = Store(out)
    return [store.read(*key) for key in wanted(run) if store.has(*key)]


def summarize(run: Run, episodes: Sequence[Episode], partial: bool = False) -> Results:
    """Errors: ClosedLoopError for episodes that are missing, if not `partial`, or without any."""
    found = {(Scene(e.suite, e.task, e.scene), e.policy) for e in episodes}
    missing = ["/".join(map(str, (*key[0], key[1]))) for key in wanted(run) if key not in found]
    if not found or (missing and not partial):
        raise ClosedLoopError(
            f"{len(missing)} episodes are missing beside {len(found)} that are there: "
            f"{', '.join(missing[:NAMED])}{', ...' if len(missing) > NAMED else ''}; run the same command "
            "again, which goes on where it ended, or ask for a partial report"
        )
    rows = [
        _row(suite, task, policy, episodes, run.reference)
        for suite, tasks in run.scenes.items()
        for task in (None, *tasks)
        for policy in run.policies
        if any(_is(e, suite, task, policy) for e in episodes)
    ]
    return Results(SCHEMA, run, tuple(missing), tuple(rows))


def write_results(out: Path, results: Results) -> None:
    data = msgspec.json.format(msgspec.json.encode(results), indent=1)
    write_file(out / FILE, data + b"\n")


def markdown(results: Results) -> str:
    """The table; the rows over all tasks come first."""
    rows = sorted(results.rows, key=lambda row: row.task is not None)
    lines = [TITLES, ["---"] * len(TITLES), *map(cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cells(row: Row) -> list[str]:
    """A row under TITLES."""
    s, pairs, d, ms = row.success, row.pairs, row.divergence, row.decision_ms
    errors = f" ({row.errors} ended by an error)" if row.errors else ""
    return [
        row.suite,
        row.task or "all",
        row.policy,
        f"{s.count}/{s.of}{errors}",
        f"{s.low * 100:.1f} to {s.high:.1%}",
        *([f"{len(pairs.lost)}", f"{len(pairs.won)}", f"{pairs.p:.2g}"] if pairs else [""] * 3),
        *([f"{x:.2g}" for x in (d.median, d.p99, d.max)] if d else [""] * 3),
        f"{row.steps:g}" if row.steps is not None else "",
        *([f"{x:.3g}" for x in (ms.median, ms.p99)] if ms else [""] * 2),
    ]


def _row(
    suite: str, task: str | None, policy: str, episodes: Sequence[Episode], reference: str | None
) -> Row:
    own = [e for e in episodes if _is(e, suite, task, policy)]
    compared = reference is not None and policy != reference
    theirs = {(e.task, e.scene): e for e in episodes if compared and _is(e, suite, task, reference)}
    steps = [e.steps for e in own if e.success]
    return Row(
        suite,
        task,
        policy,
        rate(sum(e.success for e in own), len(own)),
        _pairs(own, theirs) if compared else None,
        spread([x for e in own for x in e.divergence or ()]) if compared else None,
        float(np.median(steps)) if steps else None,
        spread([x for e in own for x in e.decision_ms]),
        sum(e.error is not None for e in own),
    )


def _pairs(own: Sequence[Episode], reference: dict[tuple[str, int], Episode]) -> Pairs:
    both = [(e, reference[e.task, e.scene]) for e in own if (e.task, e.scene) in reference]
    lost = tuple((e.task, e.scene) for e, r in both if r.success and not e.success)
    won = tuple((e.task, e.scene) for e, r in both if e.success and not r.success)
    return Pairs(len(both), lost, won, mcnemar(len(won), len(lost)))


def _is(e: Episode, suite: str, task: str | None, policy: str | None) -> bool:
    return (e.suite, e.policy) == (suite, policy) and task in (None, e.task)
