"""A thousand requests by an unmodified openpi-client, and what serving adds to a decision, in milliseconds.

`python -m tests.runtime.serve.overhead [BUNDLE]`: artifacts/bundle if absent; three minutes, and a package
index for openpi-client. What is added is the client's round trip less the policy's own `total`. A policy that
decides nothing shows it alone.
"""

import json
import multiprocessing
import os
import platform
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from pi05_runtime.manifest import read_manifest
from pi05_runtime.serve.server import serve_until_told
from tests.pipeline import TARGET
from tests.runtime.serve.serving import HOST, StandIn, ask_with_openpi, install_openpi_client, pi05_serve

REQUESTS = 1000
SIZES = ((224, 224), (480, 640), (1080, 1920))


def serve_nothing(bundle: Path, ready: Connection) -> None:
    serve_until_told(StandIn(bundle).server(), HOST, 0, ready.send)


@contextmanager
def deciding_nothing(bundle: Path) -> Generator[int]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve_nothing, args=(bundle, theirs))
    process.start()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


def row(name: str, python: Path, port: int, bundle: Path, size: tuple[int, int], folder: Path) -> str:
    manifest = read_manifest(bundle)
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    observation = {f"observation/{camera}": pixels for camera in manifest.interface.cameras}
    observation |= {"observation/state": np.zeros(manifest.interface.state_dims)}
    observation |= {"prompt": np.asarray(manifest.golden.prompt)}
    done = ask_with_openpi(python, port, observation, REQUESTS, folder / "observation.npz")
    if done.returncode:
        raise SystemExit(done.stderr)
    report = json.loads(done.stdout)
    total = np.asarray(report["total_ms"])
    added = np.asarray(report["round_trip_ms"]) - total
    frame = sum(array.nbytes for array in observation.values()) / 1e6
    median, p99 = np.percentile(added, [50, 99])
    views = len(manifest.interface.cameras)
    return (
        f"| {name} | {views} x {size[1]} x {size[0]}, {frame:.2f} MB | {len(added)} | {np.median(total):.2f} "
        f"| {median:.2f} | {p99:.2f} | {added.max():.2f} |"
    )


def main(bundle: str = "artifacts/bundle") -> None:
    path = Path(bundle)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        python = install_openpi_client(folder)
        print(
            f"{os.cpu_count()} processors, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}"
        )
        print("| policy | images | requests | total, median | added, median | added, p99 | added, max |")
        print("|---|---|---|---|---|---|---|")
        for size in SIZES:
            with deciding_nothing(path) as port:
                print(row("none", python, port, path, size, folder), flush=True)
        with pi05_serve(folder / "log", path, "--target", TARGET) as served:
            print(row(f"demo, {TARGET}", python, served.port, path, SIZES[0], folder), flush=True)
        print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
