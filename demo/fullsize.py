"""What the pipeline costs at pi0.5's real size, on this machine: `make fullsize`.

Writes a seeded 3.4 B checkpoint in openpi's layout, runs every stage up to the engines with FP8
everywhere, and prints time and peak memory of each. Stages run as they do under DVC, each a process
of its own. Nothing here judges accuracy: the weights are random.
"""

import shutil
import sys
from pathlib import Path

from demo.workspace import ROOT, make_workspace, run, write_params
from pi05_runtime.geometry import COMPONENTS, PI05

WORK = ROOT / "artifacts" / "fullsize"
DISK_BYTES = 32 << 30
OBSERVATIONS = 2
"""Calibration observations: the cost a stage has for each is small beside its fixed cost."""


def write_checkpoint() -> None:
    """In a process of its own, which needs as much memory as the checkpoint is large."""
    from demo.seeded import write_checkpoint

    write_checkpoint(Path("checkpoint"), PI05, ROOT / "demo" / "assets", seed=0)


def main() -> None:
    if (free := shutil.disk_usage(ROOT).free) < DISK_BYTES:
        sys.exit(f"error: {free >> 30} GiB of disk are free, {DISK_BYTES >> 30} needed: free some space")
    stages = [["export.checkpoint"], ["export.tables"], ["export.calibrate"]]
    stages += [["export.graph", component] for component in COMPONENTS]
    stages += [["export.quantize", component] for component in COMPONENTS]
    stages += [["export.engine", "cpu-ort", component] for component in COMPONENTS]
    try:
        params = make_workspace(WORK, OBSERVATIONS)
        params["checkpoint"]["path"] = "checkpoint"
        params["components"] = {component: {"recipe": "fp8"} for component in COMPONENTS}
        write_params(WORK, params)
        run(WORK, "demo.fullsize", "checkpoint")
        rows: list[tuple[str, float, float]] = []
        for stage in stages:
            rows.append((" ".join(stage), *run(WORK, *stage)))
            if stage == ["export.checkpoint"]:
                shutil.rmtree(WORK / "checkpoint")
        files = [p for p in (WORK / "artifacts" / "quantized").rglob("*") if p.is_file()]
        print("\n| stage | seconds | peak GB |\n|---|---|---|")
        for name, seconds, peak in rows:
            print(f"| {name} | {seconds:.0f} | {peak:.1f} |")
        print(f"| all | {sum(r[1] for r in rows):.0f} | {max(r[2] for r in rows):.1f} |")
        print(f"\nquantized ONNX: {sum(p.stat().st_size for p in files) / 1e9:.2f} GB")
    finally:
        shutil.rmtree(WORK, ignore_errors=True)


if __name__ == "__main__":
    write_checkpoint() if sys.argv[1:] == ["checkpoint"] else main()
