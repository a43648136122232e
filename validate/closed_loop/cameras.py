"""Whether a policy looks at each camera where the reference does.

Success hardly notices exchanged cameras, and neither does the divergence of a coarse recipe. So a policy is
shown one picture by one camera at a time, the others black: exchanged, its answers are the reference's to the
wrong camera.
"""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np

from pi05_runtime.errors import GateError
from validate.closed_loop.policies import Acts, Refused, Spoiled, cameras

MARGIN = 2.0
"""How much nearer the wrong camera's answer must be, so that a reference that sees little accuses nobody."""


def check_cameras(name: str, policy: Acts, reference: Acts, seen: Mapping[str, Any]) -> None:
    """seen: an observation of the simulator, with noise. Mutants are let through, but for one: the check must
    be able to fail. Errors: GateError."""
    exchanged = [
        pair for pair in combinations(cameras(seen), 2) if _exchanged(policy, reference, seen, *pair)
    ]
    mutant = policy.kind if isinstance(policy, Spoiled) else None
    if exchanged and mutant is None:
        raise GateError(
            f"policy {name!r}: shown a picture by one camera alone, it answers as the reference does to the "
            f"other, {' or '.join(exchanged[0])}; serve it with the cameras that it was trained with (--map)"
        )
    if mutant == "swapped-cameras" and not exchanged:
        raise GateError(
            f"policy {name!r}: its cameras are exchanged and its answers do not show it; the reference "
            "hardly looks at them, so that no policy's can be checked: give another reference"
        )


def _exchanged(policy: Acts, reference: Acts, seen: Mapping[str, Any], one: str, other: str) -> bool:
    black = {key: np.zeros_like(seen[key]) for key in cameras(seen)}
    shown = [{**seen, **black, key: seen[one]} for key in (one, other)]
    try:
        expected = [reference.infer(observation) for observation in shown]
        found = [policy.infer(observation) for observation in shown]
    except Refused:
        return False  # its episodes will tell
    pairs = list(zip(found, expected, strict=True))
    straight = sum(np.linalg.norm(f - e) for f, e in pairs)
    crossed = sum(np.linalg.norm(f - e) for (f, _), (_, e) in zip(pairs, reversed(pairs), strict=True))
    return bool(straight > MARGIN * crossed)
