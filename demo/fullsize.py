"""What the pipeline costs at pi0.5's real size, on this machine: `make fullsize`.

Writes a seeded 3.4 B checkpoint in openpi's layout, runs every stage up to the engines with FP8
everywhere, and prints time and peak memory of each. Stages run as they do under DVC, each a process
of its own, in a folder of their own. Nothing here judges accuracy: the weights are random.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import yaml

from demo.seeded import write_checkpoint
from pi05_runtime.geometry import COMPONENTS, PI05

ROOT = Path(__file__).parents[1]
WORK = ROOT / "artifacts" / "fullsize"
DISK_BYTES = 32 << 30
OBSERVATIONS = 2
"""Calibration observations: the cost a stage has for each is small beside its fixed cost."""


def make_workspace(folder: Path) -> None:
    """params.yaml with FP8 everywhere, locks, tokenizer and a few observations of each split."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "artifacts" / "locks", folder / "artifacts" / "locks")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["checkpoint"]["tokenizer"] = str(ROOT / "demo" / "tokenizer.model")
    params["checkpoint"]["path"] = "checkpoint"
    params["components"] = {component: {"recipe": "fp8"} for component in COMPONENTS}
    for split in ("calibration", "heldout"):
        params[split]["path"] = f"observations-{split}"
        copy_observations(folder / f"observations-{split}", params[split]["split"])
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def copy_observations(destination: Path, split: str) -> None:
    source = ROOT / "demo" / "observations"
    destination.mkdir(parents=True)
    lines = [line for line in (source / "index.jsonl").read_text().splitlines() if split in line]
    (destination / "index.jsonl").write_text("\n".join(lines[:OBSERVATIONS]) + "\n")
    for line in lines[:OBSERVATIONS]:
        for file in json.loads(line)["images"].values():
            shutil.copy(source / file, destination)


def measure(stage: list[str]) -> tuple[float, float]:
    """Runs `python -m <stage>` in WORK; (seconds, peak resident GB). Ends this program if it fails."""
    start = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-m", *stage], cwd=WORK, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"error: {' '.join(stage)} ended with exit code {process.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024 / 1e9


def main() -> None:
    if (free := shutil.disk_usage(ROOT).free) < DISK_BYTES:
        sys.exit(f"error: {free >> 30} GiB of disk are free, {DISK_BYTES >> 30} needed: free some space")
    make_workspace(WORK)
    # The checkpoint is written by a process of its own too: a child's peak starts at its parent's.
    measure(["demo.fullsize", "write"])
    stages = [["export.checkpoint"], ["export.tables"], ["export.calibrate"]]
    stages += [["export.graph", component] for component in COMPONENTS]
    stages += [["export.quantize", component] for component in COMPONENTS]
    stages += [["export.engine", "cpu-ort", component] for component in COMPONENTS]
    try:
        rows = []
        for stage in stages:
            rows.append((" ".join(stage), *measure(stage)))
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
    if sys.argv[1:] == ["write"]:
        write_checkpoint(Path("checkpoint"), PI05, ROOT / "demo" / "assets", seed=0)
    else:
        main()
