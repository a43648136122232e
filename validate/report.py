"""Prints every gate of the current pipeline, passed or not, as one table: `python -m validate.report`."""

from export.gates import GATES, expectation, read_result
from export.params import Params, load_params
from export.stage import run_stage
from pi05_runtime.errors import GateError

HEADER = "| target | gate | recipe | output | cosine | floor | relative error | floor | threshold | |"
NOT_RUN, FAIL = "**did not run**", "**FAIL**"


def main() -> None:
    params = load_params()
    table = [HEADER, "|" + "---|" * (HEADER.count("|") - 1)]
    for target in params.targets:
        for gate in GATES:
            table += _rows(params, target, gate)
    print("\n".join(table))
    if any(mark in row for row in table for mark in (NOT_RUN, FAIL)):
        print("not every gate passed: no bundle is made, and one in artifacts/bundle is an earlier one")


def _rows(params: Params, target: str, gate: str) -> list[str]:
    recipe, threshold = expectation(params, gate)
    try:
        result = read_result(target, gate)
    except GateError:
        result = None
    # A result of another recipe or threshold is left from before a change, and says nothing here.
    if result is None or (result.recipe, result.threshold) != (recipe, threshold):
        return [f"| {target} | {gate} | {recipe} | | | | | | {threshold} | {NOT_RUN} |"]
    return [
        f"| {target} | {gate} | {recipe} | {name} | {m.cosine:.6f} | {m.floor_cosine:.6f} "
        f"| {m.error:.2e} | {m.floor_error:.2e} | {threshold} "
        f"| {'pass' if m.cosine >= threshold else FAIL} |"
        for name, m in result.measured.items()
    ]


if __name__ == "__main__":
    run_stage(main)
