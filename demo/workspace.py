"""A folder of its own in which stages run as processes, with params that differ from the repository's."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]


def make_workspace(folder: Path, observations: int | None) -> dict[str, Any]:
    """Locks and observations, `observations` of each split or all; returns params to change and write."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "artifacts" / "locks", folder / "artifacts" / "locks")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["checkpoint"]["tokenizer"] = str(ROOT / "demo" / "tokenizer.model")
    params["checkpoint"]["path"] = str(ROOT / params["checkpoint"]["path"])
    for split in ("calibration", "heldout"):
        params[split]["path"] = f"observations-{split}"
        _copy_observations(folder / f"observations-{split}", params[split]["split"], observations)
    return params


def write_params(folder: Path, params: dict[str, Any]) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def run(folder: Path, *stage: str, may_fail: bool = False) -> tuple[float, float]:
    """`python -m <stage>` in `folder`; (seconds, peak resident GB). Ends this program if it fails.

    The peak starts at this process's own, so this one must stay small.
    """
    start = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-m", *stage], cwd=folder, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0 and not may_fail:
        sys.exit(f"error: {' '.join(stage)} ended with exit code {process.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024 / 1e9


def _copy_observations(destination: Path, split: str, most: int | None) -> None:
    source = ROOT / "demo" / "observations"
    destination.mkdir(parents=True)
    lines = (source / "index.jsonl").read_text().splitlines()
    lines = [line for line in lines if json.loads(line)["split"] == split][:most]
    (destination / "index.jsonl").write_text("\n".join(lines) + "\n")
    for line in lines:
        for file in json.loads(line)["images"].values():
            shutil.copy(source / file, destination)
