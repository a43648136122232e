"""A run that nobody ran: four scenes of two tasks, in which every policy ended as it is written here."""

from pathlib import Path

import numpy as np

from validate.closed_loop.records import Episode, Run, Store
from validate.closed_loop.suites import SUITES

SUITE, TASKS = "metaworld", ("drawer-open-v3", "push-v3")
ENDED = {"reference": "++++-+-+", "int8": "++++-+-+", "int2 <x>": "+---++--", "int8+black-images": "--------"}
"""In the order of tasks, then of scenes: + solved, - not."""
SCENES_EACH = 4
DIVERGENCE = {"int8": 0.001, "int2 <x>": 0.2, "int8+black-images": 0.5}
RUN = Run(
    reference="reference",
    suites={SUITE: SUITES[SUITE]},
    scenes={SUITE: {task: tuple(range(50_000, 50_000 + SCENES_EACH)) for task in TASKS}},
    simulators={SUITE: {"metaworld": "3.1.1"}},
    policies={name: {"bundle": f"of {name}"} for name in ENDED},
)
FILM = [np.full((24, 32, 3), shade, np.uint8) for shade in (0, 255)]


def episode(policy: str, i: int) -> Episode:
    """Of the i-th scene: two decisions, the second one ten times as far off as the first."""
    success, off = ENDED[policy][i] == "+", DIVERGENCE.get(policy)
    return Episode(
        suite=SUITE,
        task=TASKS[i // SCENES_EACH],
        scene=50_000 + i % SCENES_EACH,
        policy=policy,
        success=success,
        steps=60 + i if success else 200,
        error="execute: <fell> over" if policy == "int2 <x>" and i == 1 else None,
        seconds=1.5,
        decision_ms=(10.0, 20.0),
        divergence=None if off is None else (off, 10 * off),
        video=None,
    )


def episodes() -> list[Episode]:
    return [episode(policy, i) for i in range(len(TASKS) * SCENES_EACH) for policy in ENDED]


def write_run(out: Path, left_out: tuple[Episode, ...] = ()) -> Path:
    store = Store(out)
    with store.held(RUN):
        for e in episodes():
            if e not in left_out:
                store.put(e, FILM)
    return out
