"""What publishing and pulling 2 GB costs: seconds, bytes on the wire, memory; the Hub's own client beside.

`python -m tests.hub.measure`: ten minutes, 12 GB of disk, no network. Every command is a process of its own,
as on a robot; the Hub answers from this one, and takes a part of the processors that a real one would not.
"""

import os
import platform
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pi05_runtime.manifest import FILE as MANIFEST
from pi05_runtime.manifest import read_manifest
from pi05_runtime.verify import hash_file
from tests.hub.loopback_hub import READER, WRITER, serve
from tests.hub.wire import Hub
from tests.pipeline import ROOT, TARGET, make_workspace, run_pipeline
from tests.runtime.bundle_edits import edited, onnx_file
from tests.runtime.device.stores import REPO, write_keys

SIZES = {"vision": 430, "prefill": 1000, "denoise": 330}
"""MB of weights: those of an fp8 pi0.5, but for prefill's 1890."""
TABLE_MB = 240
REPEATS = 3
AT_ONCE = 8
MB = 1_000_000

SNAPSHOT = """
import sys
from huggingface_hub import snapshot_download
repo, revision, folder, *names = sys.argv[1:]
snapshot_download(repo, revision=revision, cache_dir=folder, allow_patterns=names)
"""


class Cost(NamedTuple):
    """cpu: seconds of processors, the Hub's not counted. wire: bytes of bodies, in the direction of the data.
    peak: resident bytes of one process, at most."""

    seconds: float
    cpu: float
    wire: int
    peak: int

    def __add__(self, other: object) -> "Cost":
        assert isinstance(other, Cost)
        peak = max(self.peak, other.peak)
        return Cost(self.seconds + other.seconds, self.cpu + other.cpu, self.wire + other.wire, peak)


class Bench:
    """A publisher's workspace, a Hub, and folders for robots."""

    def __init__(self, folder: Path, hub: Hub, key: Path) -> None:
        self.folder, self.hub, self.key = folder, hub, key
        self.bundle = folder / "artifacts" / "bundle"
        self.environment = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(folder / "hf"),
            "PYTHONPATH": f"{ROOT / 'runtime'}:{ROOT}",
            "PI05_ROOT": str(folder / "robot"),
        }

    def run(self, *command: object, token: str = READER, times: int = 1, kill_at: int | None = None) -> Cost:
        """The command in `times` processes at once, all of which succeed.

        kill_at: in one that is killed as soon as so many bytes were sent.
        """
        self.hub.requests.clear()
        os.sync()  # what the command before left to be written
        start, before = time.perf_counter(), cpu_seconds()
        environment = self.environment | {"HF_TOKEN": token}
        quiet = subprocess.DEVNULL
        processes = [
            subprocess.Popen(
                list(map(str, command)), env=environment, cwd=self.folder, stdout=quiet, stderr=quiet
            )
            for _ in range(times)
        ]
        peak = 0
        while running := [process for process in processes if process.poll() is None]:
            peak = max(peak, *(resident(process.pid) for process in running))
            if kill_at is not None and self.hub.sent() >= kill_at:
                processes[0].kill()
            time.sleep(0.01)
        if (codes := {process.returncode for process in processes}) != {0 if kill_at is None else -9}:
            raise SystemExit(f"{command} ended with {codes}")
        wire = self.hub.sent() if token == READER else self.hub.received()
        return Cost(time.perf_counter() - start, cpu_seconds() - before, wire, peak)

    def publish(self) -> Cost:
        module = (sys.executable, "-m", "export.publish")
        return self.run(*module, "--repo", REPO, "--key", self.key, token=WRITER)

    def pull(self, version: str, **how: int) -> Cost:
        pi05 = Path(sys.executable).with_name("pi05")
        return self.run(pi05, "pull", f"{REPO}@v{version}", "--target", TARGET, **how)

    def verify(self) -> Cost:
        (record,) = (self.folder / "robot" / "records").glob("*.json")
        return self.run(Path(sys.executable).with_name("pi05"), "verify", record.stem)

    def snapshot(self, version: str, **how: int) -> Cost:
        """The same files, by the Hub's own client."""
        manifest = read_manifest(self.bundle)
        names = (*manifest.targets[TARGET].files, MANIFEST, "model.sig")
        return self.run(
            sys.executable, "-c", SNAPSHOT, REPO, f"v{version}", self.folder / "peer", *names, **how
        )

    def forget(self) -> None:
        """Robots that have nothing but the key, and a client without a cache."""
        robot = self.folder / "robot"
        for name in ("objects", "bundles", "records"):
            shutil.rmtree(robot / name, ignore_errors=True)
        shutil.rmtree(self.folder / "peer", ignore_errors=True)


def cpu_seconds() -> float:
    """Of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def resident(pid: int) -> int:
    """The most bytes that a process has had resident so far, 0 of one that has ended.

    A child's ru_maxrss would not do: it starts with its parent's.
    """
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) << 10 if found else 0


def fill(path: Path, mb: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    with path.open("wb") as file:
        for _ in range(mb):
            file.write(generator.bytes(MB))


def release(bundle: Path, version: str, changed: dict[str, int], seed: int) -> None:
    """The bundle with other weights, MB by the file's name, in a manifest that fits."""
    for name, mb in changed.items():
        fill(bundle / name, mb, seed)
    with edited(bundle) as manifest:
        manifest["version"] = version
        for name in changed:
            found = hash_file(bundle / name)
            manifest["files"][name] = {"size": found.size, "sha256": found.sha256}


def measure(bench: Bench, repeat: int) -> dict[str, Cost]:
    """One run of everything, on a new Hub."""
    costs: dict[str, Cost] = {}
    bundle = bench.bundle
    weights = {onnx_file(bundle, name, "weights.bin"): mb for name, mb in SIZES.items()}
    release(bundle, "1", weights | {"token_embedding.bin": TABLE_MB}, 2 * repeat)
    manifest = read_manifest(bundle)
    size = sum(manifest.files[name].size for name in manifest.targets[TARGET].files)

    def twice(command: Callable[..., Cost], name: str) -> None:
        bench.forget()
        first = command("1", kill_at=size // 2)
        second = command("1")
        costs[f"{name}, killed half way"] = first
        costs[f"{name}, again after the kill"] = second
        costs[f"{name}, both together"] = first + second

    costs["publish"] = bench.publish()
    costs["publish again, nothing changed"] = bench.publish()
    costs["pull"] = bench.pull("1")
    costs["pull again, nothing changed"] = bench.pull("1")
    costs["verify"] = bench.verify()
    twice(bench.pull, "pull")
    bench.forget()
    costs[f"{AT_ONCE} pulls at once, into one store"] = bench.pull("1", times=AT_ONCE)
    bench.forget()
    costs["snapshot_download"] = bench.snapshot("1")
    costs["snapshot_download again, nothing changed"] = bench.snapshot("1")
    twice(bench.snapshot, "snapshot_download")
    bench.forget()
    bench.pull("1")
    bench.snapshot("1")
    name = onnx_file(bundle, "denoise", "weights.bin")
    release(bundle, "2", {name: SIZES["denoise"]}, 2 * repeat + 1)
    costs["publish, denoise changed"] = bench.publish()
    costs["pull, denoise changed"] = bench.pull("2")
    costs["snapshot_download, denoise changed"] = bench.snapshot("2")
    bench.forget()
    return costs


def row(name: str, costs: list[Cost]) -> str:
    seconds = sorted(cost.seconds for cost in costs)
    middle = statistics.median(seconds)
    megabytes = statistics.median(cost.wire for cost in costs) / MB
    rate = f"{megabytes / middle:.0f}" if megabytes > 1 else ""
    cpu = statistics.median(cost.cpu for cost in costs)
    peak = max(cost.peak for cost in costs) / MB
    took = f"{middle:.1f} ({seconds[0]:.1f} to {seconds[-1]:.1f})"
    return f"| {name} | {took} | {cpu:.1f} | {megabytes:.1f} | {rate} | {peak:.0f} |"


def main() -> None:
    runs: list[dict[str, Cost]] = []
    loads: list[float] = []
    with tempfile.TemporaryDirectory() as made:
        folder = make_workspace(Path(made, "workspace"))
        with redirect_stdout(sys.stderr):
            run_pipeline(folder)
        key = write_keys(folder / "robot" / "keys", "release").rename(folder / "release.pem")
        for repeat in range(REPEATS):
            loads.append(os.getloadavg()[0])
            print(f"run {repeat + 1} of {REPEATS}, load {loads[-1]:.1f}", file=sys.stderr)
            with serve(folder / f"hub{repeat}") as hub:
                runs.append(measure(Bench(folder, hub, key), repeat))
            shutil.rmtree(folder / f"hub{repeat}")
        manifest = read_manifest(folder / "artifacts" / "bundle")
        size = sum(manifest.files[name].size for name in manifest.targets[TARGET].files)
        total = sum(file.size for file in manifest.files.values())
    print(f"bundle {total / MB:.0f} MB, of which a {TARGET} robot takes {size / MB:.0f} MB")
    print(f"{os.cpu_count()} processors, Python {platform.python_version()}, loads {loads}")
    print("| | seconds | processor seconds | MB on the wire | MB/s | peak MB |\n|---|---|---|---|---|---|")
    for name in runs[0]:
        print(row(name, [costs[name] for costs in runs]))


if __name__ == "__main__":
    main()
