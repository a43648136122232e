"""What pi05-runtime brings to a robot: seconds to install, megabytes, packages, and seconds to import.

`python -m tests.runtime.install_size`. Packages are downloaded before, so that seconds are pip's and the
disk's.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.pipeline import ROOT

EXTRAS = ("", "[ort]")
MB = 1_000_000
IMPORTS = 5


def run(*command: object) -> str:
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout


def megabytes(folder: Path) -> float:
    """As `du` counts, so that a file smaller than a block counts as one."""
    files = {(found := path.lstat()).st_ino: found.st_blocks * 512 for path in folder.rglob("*")}
    return sum(files.values()) / MB


def install(folder: Path, extra: str) -> str:
    """A row of the table."""
    # From a copy: setuptools leaves a build folder beside what it builds, and reads it the next time.
    source = shutil.copytree(ROOT / "runtime", folder / "runtime")
    run(sys.executable, "-m", "venv", folder / "venv")
    empty = megabytes(folder / "venv")
    pip = (folder / "venv" / "bin" / "pip", "--disable-pip-version-check")
    wanted = ("--constraint", ROOT / "constraints.txt", f"{source}{extra}")
    run(*pip, "download", "--dest", folder / "wheels", *wanted)
    start = time.perf_counter()
    run(*pip, "install", *wanted)
    seconds = time.perf_counter() - start
    size = megabytes(folder / "venv") - empty
    packages = [found["name"] for found in json.loads(run(*pip, "list", "--format", "json"))]
    python = folder / "venv" / "bin" / "python"
    spent: list[float] = []
    for module in ("pi05_runtime", "pi05_runtime.policy"):
        program = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
        spent.append(statistics.median(float(run(python, "-I", "-c", program)) for _ in range(IMPORTS)))
    brought = len(set(packages) - {"pip", "setuptools"})
    times = " | ".join(f"{1e3 * second:.0f}" for second in spent)
    return f"| `./runtime{extra}` | {seconds:.1f} | {size:.0f} | {brought} | {times} |"


def main() -> None:
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    print("| | seconds | MB | packages | ms to import pi05_runtime | ms to import its policy |")
    print("|---|---|---|---|---|---|")
    for extra in EXTRAS:
        with tempfile.TemporaryDirectory() as folder:
            print(install(Path(folder), extra), flush=True)


if __name__ == "__main__":
    main()
