"""What each recipe costs in accuracy on the demo, gates passed or not: `make recipes`.

Every row is the whole pipeline from quantization on, over all recorded observations; the figures are the
gates' own cosines against the BF16 reference, for actions at every step count.
"""

import shutil
from contextlib import chdir

from demo.workspace import ROOT, make_workspace, run, write_params
from export.gates import ACTIONS, GATES, Result, read_result
from pi05_runtime.geometry import COMPONENTS

WORK = ROOT / "artifacts" / "recipes"
TARGET = "cpu-ort"
ROWS = {
    "bf16": ("bf16", "bf16", "bf16"),
    "int8": ("int8", "int8", "int8"),
    "fp8": ("fp8", "fp8", "fp8"),
    "fp8, vision bf16": ("bf16", "fp8", "fp8"),
    "nvfp4, vision bf16": ("bf16", "nvfp4", "nvfp4"),
    "nvfp4": ("nvfp4", "nvfp4", "nvfp4"),
    "int4, vision bf16": ("bf16", "int4", "int4"),
    "int4": ("int4", "int4", "int4"),
}
"""Recipes of vision, prefill and denoise."""


def main() -> None:
    components = [
        "| recipe | vision | prefill keys | prefill values | denoise | gates |",
        "|---|---|---|---|---|---|",
    ]
    actions: list[str] = []
    try:
        params = make_workspace(WORK, None)
        params["gates"]["steps"] = params["export"]["steps"]
        actions.append(f"| actions at steps | {' | '.join(map(str, params['gates']['steps']))} |")
        actions.append("|" + "---|" * (actions[0].count("|") - 1))
        write_params(WORK, params)
        for stage in (["export.checkpoint"], ["export.tables"], ["export.calibrate"], ["validate.reference"]):
            run(WORK, *stage)
        for component in COMPONENTS:
            run(WORK, "export.graph", component)
        for name, recipes in ROWS.items():
            params["components"] = {c: {"recipe": r} for c, r in zip(COMPONENTS, recipes, strict=True)}
            write_params(WORK, params)
            for component in COMPONENTS:
                run(WORK, "export.quantize", component)
                run(WORK, "export.engine", TARGET, component)
                run(WORK, "validate.parity", TARGET, component, may_fail=True)
            run(WORK, "validate.actions", TARGET, may_fail=True)
            with chdir(WORK):
                results = {gate: read_result(TARGET, gate) for gate in GATES}
            passed = "pass" if all(r.passed for r in results.values()) else "**fail**"
            alone = [_cells(results[component]) for component in COMPONENTS]
            components.append(f"| {name} | {' | '.join(alone)} | {passed} |")
            actions.append(f"| {name} | {_cells(results[ACTIONS])} |")
    finally:
        shutil.rmtree(WORK, ignore_errors=True)
    print("\n".join([*components, "", *actions]))


def _cells(result: Result) -> str:
    return " | ".join(f"{m.cosine:.5f}" for m in result.measured.values())


if __name__ == "__main__":
    main()
