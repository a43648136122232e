"""What each recipe costs in accuracy on the demo, gates passed or not: `make recipes`.

Every row is the whole pipeline from quantization on, over all recorded observations; the figures are the
gates' own.
"""

import shutil
from contextlib import chdir

from demo.workspace import ROOT, make_workspace, run, write_params
from export.gates import GATES, read_result
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
    lines = [f"| recipe | {' | '.join(GATES)} (by steps) | gates |", "|---|---|---|---|---|---|"]
    try:
        params = make_workspace(WORK, None)
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
                results = [read_result(TARGET, gate) for gate in GATES]
            cells = [" / ".join(f"{m.cosine:.5f}" for m in r.measured.values()) for r in results]
            passed = "pass" if all(r.passed for r in results) else "**fail**"
            lines.append(f"| {name} | {' | '.join(cells)} | {passed} |")
    finally:
        shutil.rmtree(WORK, ignore_errors=True)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
