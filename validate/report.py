"""Prints the gates of the current pipeline as one table: `python -m validate.report`."""

from export.gates import read_result
from export.params import load_params
from export.stage import run_stage
from pi05_runtime.geometry import COMPONENTS

HEADER = "| target | gate | recipe | output | cosine | floor | relative error | floor | threshold |"


def main() -> None:
    print(HEADER)
    print("|" + "---|" * (HEADER.count("|") - 1))
    for target in load_params().targets:
        for gate in (*COMPONENTS, "actions"):
            result = read_result(f"{target}/{gate}")
            for name, m in result.measured.items():
                print(
                    f"| {target} | {gate} | {result.recipe} | {name} | {m.cosine:.6f} | {m.floor_cosine:.6f} "
                    f"| {m.error:.2e} | {m.floor_error:.2e} | {result.threshold} |"
                )


if __name__ == "__main__":
    run_stage(main)
