"""What the pipeline costs at pi0.5's real size, on this machine: `make fullsize`.

Writes a seeded 3.4 B checkpoint in openpi's layout, runs every stage up to the engines with FP8
everywhere, then an NVFP4 prefill, and prints time and peak memory of each. Stages run as they do under
DVC, each a process of its own. Nothing here judges accuracy: the weights are random.
"""

import shutil
import sys
from contextlib import chdir
from pathlib import Path

from demo.workspace import ROOT, make_workspace, run, write_params
from export.artifacts import engine_folder
from export.engine import read_record
from pi05_runtime.geometry import COMPONENTS, PI05, PREFIX

WORK = ROOT / "artifacts" / "fullsize"
DISK_BYTES = 40 << 30
OBSERVATIONS = 2
"""Calibration observations: the cost a stage has for each is small beside its fixed cost."""
BUCKETS = [200]
"""The longest prompt of released pi0.5 checkpoints."""
ENGINES = {
    "sm89-rtx": COMPONENTS,
    "sm120-rtx": (*COMPONENTS, PREFIX),
    "sm90-plan": COMPONENTS,
    "sm110-plan": COMPONENTS,
}


def write_checkpoint() -> None:
    """In a process of its own, which needs as much memory as the checkpoint is large."""
    from demo.seeded import write_checkpoint

    write_checkpoint(Path("checkpoint"), PI05, ROOT / "demo" / "assets", seed=0)


def stage(*arguments: str) -> None:
    """Runs one stage and prints its row."""
    seconds, peak = run(WORK, *arguments)
    rows.append(f"| {' '.join(arguments).removeprefix('export.')} | {seconds:.0f} | {peak:.1f} |")
    totals.append((seconds, peak))


def engine(target: str, network: str) -> None:
    """Builds one engine and prints its row."""
    seconds, peak = run(WORK, "export.engine", target, network)
    with chdir(WORK):
        record = read_record(target, network)
        size = (engine_folder(target, network) / record.file).stat().st_size
    recipes = ", ".join(record.recipes.values())
    layers = ", ".join(f"{count} {precision}" for precision, count in sorted(record.layers.items()))
    attempts = len(record.attempts)
    engines.append(
        f"| {target} | {network} | {recipes} | {seconds:.0f} | {peak:.1f} | {size / 1e9:.2f} | {layers} "
        f"| {attempts} |"
    )


rows: list[str] = []
engines: list[str] = []
totals: list[tuple[float, float]] = []


def main() -> None:
    if (free := shutil.disk_usage(ROOT).free) < DISK_BYTES:
        sys.exit(f"error: {free >> 30} GiB of disk are free, {DISK_BYTES >> 30} needed: free some space")
    try:
        params = make_workspace(WORK, OBSERVATIONS)
        params["checkpoint"]["path"] = "checkpoint"
        params["checkpoint"]["interface"]["max_prompt_tokens"] = BUCKETS[-1]
        params["export"]["prompt_buckets"] = BUCKETS
        params["components"] = {component: {"recipe": "fp8"} for component in COMPONENTS}
        params["targets"] = ["cpu-ort", *ENGINES]
        write_params(WORK, params)
        run(WORK, "demo.fullsize", "checkpoint")
        stage("export.checkpoint")
        shutil.rmtree(WORK / "checkpoint")
        stage("export.tables")
        stage("export.calibrate")
        for name in ("export.graph", "export.quantize", "export.engine cpu-ort"):
            for component in COMPONENTS:
                stage(*name.split(), component)
        files = [p for p in (WORK / "artifacts" / "quantized").rglob("*") if p.is_file()]
        size = sum(p.stat().st_size for p in files) / 1e9
        for target, networks in ENGINES.items():
            for network in networks:
                engine(target, network)
        params["components"]["prefill"] = {"recipe": "nvfp4"}
        params["targets"] = ["sm120-rtx"]
        write_params(WORK, params)
        stage("export.quantize", "prefill")
        engine("sm120-rtx", "prefill")
        print("\n| stage | seconds | peak GB |\n|---|---|---|", *rows, sep="\n")
        print(f"| all | {sum(t[0] for t in totals):.0f} | {max(t[1] for t in totals):.1f} |")
        print(f"\nFP8 ONNX of all components: {size:.2f} GB")
        print("\n| target | engine | recipe | seconds | peak GB | size GB | linear layers | attempts |")
        print("|---|---|---|---|---|---|---|---|", *engines, sep="\n")
    finally:
        shutil.rmtree(WORK, ignore_errors=True)


if __name__ == "__main__":
    write_checkpoint() if sys.argv[1:] == ["checkpoint"] else main()
