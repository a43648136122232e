"""Reads what this device is, and judges nothing. Whatever is absent or broken is a fact too."""

import platform
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from pi05_runtime.child import Fault, run_child
from pi05_runtime.doctor.device import Facts, Gpu
from pi05_runtime.doctor.probe import Finding, Found, Problem, Question, Version
from pi05_runtime.targets import TARGETS, Library

MINUTES = 1
"""For one look. TensorRT takes several seconds to load from a slow disk; a driver that hangs, forever."""
TEGRA_RELEASE = Path("/etc/nv_tegra_release")
RUN_LIBRARIES: tuple[Library, ...] = tuple(
    dict.fromkeys(target.library for target in TARGETS.values() if target.needs_library)
)
_ANSWER: msgspec.json.Decoder[Finding] = msgspec.json.Decoder(Finding)


def facts(root: Path) -> Facts:
    """What this device is. root: the folder that bundles are kept in; it need not exist yet.

    Errors: OSError if not even /proc can be read.
    """
    questions = [Question("gpu"), Question("cuda-python"), *map(Question, RUN_LIBRARIES)]
    with ThreadPoolExecutor(len(questions)) as pool:
        findings = dict(zip([q.about for q in questions], pool.map(_ask, questions), strict=True))
    gpu: Gpu | None = None
    versions: dict[str, str] = {}
    problems: dict[str, str] = {}
    for about, finding in findings.items():
        match finding:
            case Found(found):
                gpu = found
            case Version(text):
                versions[about] = text
            case Problem(text) | Fault(text):
                problems[about] = text
    memory = read_memory(Path("/proc/meminfo").read_text())
    place = next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())
    return Facts(
        source="read on the device",
        machine=platform.machine(),
        python=platform.python_version(),
        l4t=read_l4t(TEGRA_RELEASE.read_text()) if TEGRA_RELEASE.exists() else None,
        jetpack=_output("dpkg-query", "--show", "--showformat=${Version}", "nvidia-jetpack"),
        power_mode=read_power_mode(_output("nvpmodel", "-q") or ""),
        gpu=gpu,
        versions=versions,
        problems=problems,
        memory=memory["MemTotal"],
        memory_free=memory["MemAvailable"],
        root=str(place),
        disk_free=shutil.disk_usage(place).free,
    )


def read_l4t(text: str) -> str | None:
    """The release of Jetson Linux, as 38.2.0, of what /etc/nv_tegra_release says."""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return f"{found[1]}.{found[2]}" if found else None


def read_power_mode(text: str) -> str | None:
    """The mode's name, of what `nvpmodel -q` says."""
    found = re.search(r"NV Power Mode: *(\S+)", text)
    return found[1] if found else None


def read_memory(text: str) -> dict[str, int]:
    """Name -> bytes, of what /proc/meminfo says."""
    return {name: int(kb) * 1024 for name, kb in re.findall(r"^(\w+): +(\d+) kB$", text, re.MULTILINE)}


def _ask(question: Question) -> Finding | Fault:
    return run_child("pi05_runtime.doctor.probe", question, _ANSWER, MINUTES, quiet=True)


def _output(*command: str) -> str | None:
    """What a program says; None if it is not there, fails or takes too long."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=MINUTES * 60,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
