"""A gate's result: an error, the noise floor beside it, and the threshold it is held to.

Written before judging, so that a failed gate can be read; `dvc metrics diff` compares the files.
"""

import numpy as np
from safetensors.torch import load_file

from export.artifacts import REFERENCE, write_json
from export.gates import METRICS, Measured, Result, expectation
from export.params import Params
from pi05_runtime.errors import GateError
from pi05_runtime.golden import cosine
from pi05_runtime.manifest import Judged

DIGITS = 7


class Answers:
    """What the BF16 reference and FP32 answered, `<output>.<observation>`: the stage `reference`."""

    def __init__(self) -> None:
        self.bf16, self.fp32 = (_load(precision) for precision in ("bf16", "fp32"))
        self.count = 1 + max(int(name.rsplit(".", 1)[1]) for name in self.bf16)

    def measure(self, name: str, answers: list[np.ndarray], action_dims: int | None = None) -> Measured:
        """The engine's answers, one an observation, against the stored output `name`: the worst of them.

        With action_dims, these of the last axis count, and all observations are one vector: where a hand
        hardly moves a chunk is close to zero and has no direction, so that the worst cosine would say how
        slow the policy is there, and not how far off the engine.
        """
        expected, floor = ([of[f"{name}.{i}"] for i in range(self.count)] for of in (self.bf16, self.fp32))
        if action_dims is not None:
            answers, expected, floor = (
                [np.stack(of)[..., :action_dims]] for of in (answers, expected, floor)
            )
        (found, error), (floor_cosine, floor_error) = _worst(answers, expected), _worst(floor, expected)
        return Measured(*(round(x, DIGITS) for x in (found, floor_cosine, error, floor_error)))


def judge(
    params: Params, target: str, gate: str, judged: Judged, count: int, measured: dict[str, Measured]
) -> None:
    """Writes metrics/<target>/<gate>.json, prints it, and raises GateError unless it passed.

    count: observations. Anything that is not clearly at or above the threshold fails.
    """
    recipe, threshold = expectation(params, target, gate)
    result = Result(recipe, threshold, judged, count, measured)
    write_json(METRICS / target / f"{gate}.json", result)
    for name, m in measured.items():
        print(
            f"{target} {gate} {name} ({judged}): cosine {m.cosine:.6f} (floor {m.floor_cosine:.6f}), "
            f"relative error {m.error:.2e} (floor {m.floor_error:.2e})"
        )
    if not result.passed:
        raise GateError(
            f"gate {gate} of {target} ({recipe}): cosine {result.cosine:.6f} found, at least {threshold} "
            "expected; keep sensitive layers in bf16 (components.<name>.keep) or choose a finer recipe"
        )


def _worst(answers: list[np.ndarray], expected: list[np.ndarray]) -> tuple[float, float]:
    pairs = list(zip(answers, expected, strict=True))
    # numpy's min and max, unlike Python's, let no NaN slip through.
    smallest = np.min([cosine(a, e) for a, e in pairs])
    largest = np.max([np.linalg.norm(a - e) / np.linalg.norm(e) for a, e in pairs])
    return float(smallest), float(largest)


def _load(precision: str) -> dict[str, np.ndarray]:
    return {n: t.float().numpy() for n, t in load_file(REFERENCE / f"{precision}.safetensors").items()}
