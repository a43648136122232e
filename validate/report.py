"""Prints every gate of the current pipeline, passed or not, as one table: `python -m validate.report`."""

from export.gates import GATES, read_result
from export.params import load_params
from export.stage import run_stage
from pi05_runtime.errors import GateError

HEADER = "| target | gate | recipe | output | cosine | floor | relative error | floor | threshold | |"


def main() -> None:
    print(HEADER)
    print("|" + "---|" * (HEADER.count("|") - 1))
    for target in load_params().targets:
        for gate in GATES:
            print("\n".join(_rows(target, gate)))


def _rows(target: str, gate: str) -> list[str]:
    try:
        result = read_result(target, gate)
    except GateError:
        return [f"| {target} | {gate} | | | | | | | | **did not run** |"]
    return [
        f"| {target} | {gate} | {result.recipe} | {name} | {m.cosine:.6f} | {m.floor_cosine:.6f} "
        f"| {m.error:.2e} | {m.floor_error:.2e} | {result.threshold} "
        f"| {'pass' if m.cosine >= result.threshold else '**FAIL**'} |"
        for name, m in result.measured.items()
    ]


if __name__ == "__main__":
    run_stage(main)
