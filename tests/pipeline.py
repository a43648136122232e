"""Runs stages in this process, in a folder of their own, as DVC would run them in the repository."""

import importlib
import json
import shutil
from contextlib import chdir
from pathlib import Path
from typing import Any

import yaml

from pi05_runtime.geometry import COMPONENTS

ROOT = Path(__file__).parents[1]
TARGET = "cpu-ort"


def make_workspace(folder: Path) -> Path:
    """params.yaml, locks, the demo's checkpoint and a handful of its observations."""
    (folder / "artifacts").mkdir(parents=True)
    shutil.copytree(ROOT / "artifacts" / "locks", folder / "artifacts" / "locks")
    shutil.copy(ROOT / "params.yaml", folder)
    (folder / "demo").mkdir()
    shutil.copytree(ROOT / "demo" / "checkpoint", folder / "demo" / "checkpoint")
    shutil.copy(ROOT / "demo" / "tokenizer.model", folder / "demo")
    copy_observations(folder / "demo" / "observations")
    return folder


def copy_observations(destination: Path) -> None:
    """One frame of each task and split."""
    source = ROOT / "demo" / "observations"
    destination.mkdir()
    seen: set[tuple[str, str]] = set()
    with (destination / "index.jsonl").open("w") as index:
        for line in (source / "index.jsonl").read_text().splitlines():
            record = json.loads(line)
            if (key := (record["task"], record["split"])) not in seen:
                seen.add(key)
                index.write(line + "\n")
                for file in record["images"].values():
                    shutil.copy(source / file, destination)


def change_params(folder: Path, **changes: Any) -> None:
    """Sets entries of params.yaml; a dotted path is written with `__`."""
    path = folder / "params.yaml"
    params = yaml.safe_load(path.read_text())
    for name, value in changes.items():
        *parents, last = name.split("__")
        entry = params
        for parent in parents:
            entry = entry[parent]
        entry[last] = value
    path.write_text(yaml.safe_dump(params))


def run_stage(folder: Path, module: str, *arguments: str) -> None:
    """`python -m <module> <arguments>` in `folder`, in this process; errors come through."""
    with chdir(folder):
        importlib.import_module(module).main(*arguments)


def run_pipeline(folder: Path) -> None:
    for module in ("export.checkpoint.__main__", "export.tables", "export.calibrate"):
        run_stage(folder, module)
    for component in COMPONENTS:
        run_stage(folder, "export.graph", component)
    run_quantized(folder)


def run_quantized(folder: Path) -> None:
    """From the quantize stage to the bundle, over graphs that exist."""
    for component in COMPONENTS:
        run_stage(folder, "export.quantize", component)
        run_stage(folder, "export.engine.__main__", TARGET, component)
    if not (folder / "artifacts" / "reference").exists():
        run_stage(folder, "validate.reference")
    for component in COMPONENTS:
        run_stage(folder, "validate.parity", TARGET, component)
    run_stage(folder, "validate.actions", TARGET)
    run_stage(folder, "export.bundle")
