"""Whether the closed loop can fail: a policy that sees nothing, or hears another task, must be seen to lose.

That exchanged cameras are noticed is shown when the run starts (cameras.py): success hardly notices them.
"""

from collections.abc import Sequence

from pi05_runtime.errors import GateError
from validate.closed_loop.records import Episode
from validate.closed_loop.sources import REFERENCE
from validate.closed_loop.statistics import mcnemar

MUST_LOSE = ("black-images", "wrong-prompt")
SIGNIFICANT = 0.05


def check_mutants(episodes: Sequence[Episode]) -> None:
    """episodes: of the reference and its mutants in the same scenes. Errors: GateError."""
    won = {(e.suite, e.task, e.scene): e.success for e in episodes if e.policy == REFERENCE}
    for name in (f"{REFERENCE}+{kind}" for kind in MUST_LOSE):
        own = [(won[e.suite, e.task, e.scene], e.success) for e in episodes if e.policy == name]
        lost, gained = own.count((True, False)), own.count((False, True))
        if gained >= lost or mcnemar(gained, lost) >= SIGNIFICANT:
            raise GateError(
                f"self-test: {name} lost {lost} of {len(own)} scenes that the reference solved and gained "
                f"{gained}, which chance explains; take more --scenes, or find out why nothing is noticed"
            )
        print(f"self-test: {name} lost {lost} of {len(own)} scenes, gained {gained}")
