"""`python -m validate.benchmark`: one command, several runs in one process, written as they come.

    python -m validate.benchmark OUT --target cpu-ort --bundle artifacts/bundle
    python -m validate.benchmark OUT --target sm90-plan --profile C A10 --recipe fp8 bf16 --kernels KERNELS

OUT holds benchmark.json and benchmark.html after every step count, so that a command that is ended early has
lost only what it had not measured.
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from msgspec.structs import replace

from export.engine.plan.measured import Entry
from export.params import load_params
from export.stage import run_stage
from pi05_runtime.doctor.reading import facts
from pi05_runtime.errors import Pi05Error
from pi05_runtime.geometry import PI05
from pi05_runtime.lock import check_device
from pi05_runtime.manifest import read_manifest
from pi05_runtime.targets import find_target
from validate.benchmark.decisions import CPU_CALLS, GPU_CALLS, Calls
from validate.benchmark.floors import find_chip
from validate.benchmark.measure import Subject, measure
from validate.benchmark.page import write_page
from validate.benchmark.peers import Setting, measure_peers, rated
from validate.benchmark.profiles import BUNDLE, PROFILES, STEPS
from validate.benchmark.results import (
    SCHEMA,
    BenchmarkError,
    Device,
    Peer,
    Refused,
    Report,
    Run,
    write_report,
)

TOKENIZER = Path("demo/tokenizer.model")
COSTLIEST = 3
"""Rows of the kernel table that the terminal shows."""


class Record:
    """The report as it grows, on the disk after every change."""

    def __init__(self, folder: Path, device: Device) -> None:
        self._folder = folder
        started = datetime.now(UTC).isoformat(timespec="seconds")
        self.report = Report(SCHEMA, started, False, device, (), ())

    def put(self, run: Run) -> None:
        """In the place of what is known of this run so far."""
        self._write(runs=(*(r for r in self.report.runs if r.name != run.name), run))

    def refuse(self, name: str, reason: str) -> None:
        self._write(refused=(*self.report.refused, Refused(name, reason)))

    def finish(self) -> None:
        """Nothing more comes: the report is complete if nothing was refused or left out."""
        left_out = any(run.missing for run in self.report.runs)
        self._write(complete=not self.report.refused and not left_out)

    def _write(self, **changed: object) -> None:
        self.report = replace(self.report, **changed)
        write_report(self._folder, self.report)
        write_page(self._folder, self.report)


def read_device() -> Device:
    load, found = os.getloadavg()[0], facts(Path.cwd())
    cpu = next(
        (row.partition(":")[2].strip() for row in _cpu_rows() if row.startswith("model name")),
        platform.processor() or platform.machine(),
    )
    gpu = found.gpu
    chip = find_chip(gpu.name) if gpu else None
    return Device(
        name=gpu.name if gpu else cpu,
        chip=chip.name if chip else None,
        compute_capability=gpu.compute_capability if gpu else None,
        driver=gpu.driver if gpu else None,
        power_mode=found.power_mode,
        jetpack=found.jetpack,
        machine=found.machine,
        processor=cpu,
        cores=os.cpu_count() or 1,
        load=load,
        versions={"python": found.python, **found.versions},
    )


def _cpu_rows() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def subjects(
    asked: argparse.Namespace,
    scratch: Path,
    late: Callable[[str], bool],
    refuse: Callable[[str, Pi05Error], None],
) -> Iterator[tuple[Subject, Path | None]]:
    """What to measure, each with its checkpoint. late: whether it is too late to make one of this name.
    refuse: takes one that could not be made."""
    if asked.bundle is not None:
        manifest = read_manifest(asked.bundle)
        name, weights = f"{manifest.name} {manifest.version}", f"weights of {manifest.name}"
        yield (
            Subject(name, BUNDLE, asked.bundle, asked.target, weights, asked.engines),
            asked.checkpoint,
        )
        return
    yield from seeded_subjects(asked, scratch, late, refuse)


def seeded_subjects(
    asked: argparse.Namespace,
    scratch: Path,
    late: Callable[[str], bool],
    refuse: Callable[[str, Pi05Error], None],
) -> Iterator[tuple[Subject, Path | None]]:
    """Each is made when its turn comes, and gone after it."""
    import torch

    from pi05_runtime.tuned import tune
    from validate.benchmark.kernels import compile_file, read_kernels
    from validate.benchmark.maker import Maker
    from validate.benchmark.measured import chosen, write_table
    from validate.benchmark.seeded import SEED, kept, seeded_weights, write_checkpoint

    params, device = load_params(), "cuda" if torch.cuda.is_available() else "cpu"
    wanted = [PROFILES[name] for name in asked.profile]
    if asked.kernels is None:
        file = compile_file(scratch / "kernels", asked.target, PI05, wanted, asked.recipe)
    else:
        file = read_kernels(asked.kernels, asked.target)
    weights = seeded_weights(PI05, device)
    checkpoint = None
    if asked.peer is not None:
        write_checkpoint(scratch / "checkpoint", weights, PI05)
        checkpoint = scratch / "checkpoint" / "model.safetensors"
    maker = Maker(PI05, weights, device, TOKENIZER, asked.target, file.kernels, file.lock, params)
    entries: dict[tuple[str, int], Entry] = {}
    for name in asked.profile:
        for recipe in asked.recipe:
            if late(f"{name} {recipe}"):
                continue
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                bundle, tuned = Path(folder, "bundle"), Path(folder, "tuned")
                try:
                    calls = maker.write(bundle, f"seeded-{name}-{recipe}", PROFILES[name], recipe)
                    if device == "cuda":
                        torch.cuda.empty_cache()
                    if asked.tune:
                        record = tune(bundle, asked.target, tuned)
                        entries |= chosen(bundle, calls, file.kernels, record)
                        write_table(asked.out, record.gpu, entries)
                except Pi05Error as error:
                    refuse(f"{name} {recipe}", error)
                    continue
                engines = tuned if asked.tune else None
                said, keep = f"seeded weights, seed {SEED}", kept(PROFILES[name]) if recipe == "fp8" else {}
                subject = Subject(f"{name} {recipe}", name, bundle, asked.target, said, engines, keep)
                yield subject, checkpoint


def parse(arguments: tuple[str, ...]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m validate.benchmark", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="folder for benchmark.json and benchmark.html")
    add("--target", required=True)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--bundle", type=Path, help="measure this bundle as it is")
    what.add_argument(
        "--profile", nargs="+", choices=PROFILES, help="measure seeded kernel plans of full size"
    )
    add("--engines", type=Path, help="with --bundle: what `pi05 rebuild` or `pi05 tune` made of it")
    add("--recipe", nargs="+", choices=("fp8", "bf16"), default=["fp8"], help="with --profile")
    add(
        "--kernels",
        type=Path,
        help="with --profile: of validate.benchmark.kernels; compiled here if not given",
    )
    add("--tune", action="store_true", help="with --profile: measure the kernels' variants first")
    add("--steps", nargs="+", type=int, default=list(STEPS), help="Euler step counts")
    add("--warm-up", type=int, help=f"calls before those that count: {CPU_CALLS[0]}, on a GPU {GPU_CALLS[0]}")
    add("--repeats", type=int, help=f"calls that count: {CPU_CALLS[1]}, on a GPU {GPU_CALLS[1]}")
    add("--minutes", type=float, default=60, help="begin nothing new after this long")
    add("--peer", type=Path, metavar="PYTHON", help="interpreter that has lerobot")
    add(
        "--checkpoint",
        type=Path,
        help="with --bundle and --peer: its model.safetensors, under openpi's names",
    )
    add("--peer-minutes", type=float, default=5, help="each peer is stopped after this long")
    add("--compile", nargs="+", type=int, default=[10], help="step counts at which the peer is compiled too")
    add("--compile-mode", default="default", help="torch.compile's")
    return parser.parse_args(arguments)


def check(asked: argparse.Namespace) -> None:
    """Errors: BenchmarkError for what cannot be measured, TargetError for another device's target."""
    target = find_target(asked.target)
    if asked.profile and target.engine != "plan":
        raise BenchmarkError(
            f"--profile makes kernel plans, {asked.target} is of {target.engine}: give a --bundle for it"
        )
    if wrong := sorted(set(asked.steps if asked.profile else ()) - set(STEPS)):
        raise BenchmarkError(f"--steps {wrong} found, some of {list(STEPS)} expected with --profile")
    for name in ("warm_up", "repeats"):
        if (value := getattr(asked, name)) is not None and value < (name == "repeats"):
            raise BenchmarkError(f"--{name.replace('_', '-')} {value} found, more calls expected")
    check_device(asked.target)


def main(*arguments: str) -> None:
    asked = parse(arguments)
    check(asked)
    start = time.monotonic()
    on_gpu = find_target(asked.target).compute_capability is not None
    warm_up, repeats = GPU_CALLS if on_gpu else CPU_CALLS
    calls = Calls(
        warm_up if asked.warm_up is None else asked.warm_up,
        asked.repeats or repeats,
        start + asked.minutes * 60,
    )
    record = Record(asked.out, read_device())
    chip = find_chip(record.report.device.name) if on_gpu else None
    peers: dict[str, tuple[Peer, ...]] = {}
    faults: list[Pi05Error] = []

    def late(name: str) -> bool:
        if calls.over:
            record.refuse(name, f"the time limit of {asked.minutes:g} minutes came first")
        return calls.over

    def refuse(name: str, error: Pi05Error) -> None:
        record.refuse(name, str(error))
        faults.append(error)

    asked.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".benchmark.", dir=asked.out) as scratch:
        for subject, checkpoint in subjects(asked, Path(scratch), late, refuse):
            if late(subject.name):
                continue
            try:
                run = None
                for run in measure(subject, tuple(asked.steps), calls, chip):
                    record.put(run)
            except Pi05Error as error:
                refuse(subject.name, error)
                continue
            if run is not None and run.steps:
                if subject.profile not in peers:
                    device = "cuda" if on_gpu else "cpu"
                    setting = asked.peer and Setting(
                        asked.peer,
                        checkpoint,
                        device,
                        asked.peer_minutes,
                        tuple(asked.compile),
                        asked.compile_mode,
                    )
                    left = lambda: (calls.deadline - time.monotonic()) / 60  # noqa: E731
                    peers[subject.profile] = measure_peers(run, subject, setting, calls, left)
                record.put(replace(run, peers=rated(peers[subject.profile], run)))
            print(f"{subject.name}: {_line(record.report.runs[-1])}")
    record.finish()
    print(f"benchmark: {asked.out / 'benchmark.html'}")
    if faults:
        raise faults[0]


def _line(run: Run) -> str:
    parts = [f"{s.steps} steps {s.total.median_ms:.3f} ms (p99 {s.total.p99_ms:.3f})" for s in run.steps]
    parts.append(f"load to first action {run.load_s + run.first_s:.2f} s")
    costliest = sorted(run.launches, key=lambda la: -la.decision_ms)[:COSTLIEST]
    parts += [f"{la.network} {la.name} x{la.launches} {la.decision_ms:.3f} ms" for la in costliest]
    return ", ".join(parts)


if __name__ == "__main__":
    run_stage(main)
