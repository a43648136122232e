"""LeRobot's PI05 beside a run: same geometry, weights, inputs and machine, in a process of its own.

Where there is no such peer, or it does not agree with the run's reference, there is no ratio and the report
says why. The peer starts from preprocessed images and token ids, so its time leaves out what the run's total
has in it: resizing, normalising, tokenizing, embedding and the scales of the actions.
"""

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from msgspec.structs import replace
from safetensors.torch import load_file, save_file

from pi05_runtime import golden
from pi05_runtime.manifest import Manifest, read_manifest
from pi05_runtime.verify import hash_file
from validate.benchmark import lerobot_process
from validate.benchmark.decisions import Calls
from validate.benchmark.inputs import golden_inputs
from validate.benchmark.measure import Subject
from validate.benchmark.results import Peer, Run, summarize

EAGER, COMPILED = "LeRobot, eager", "LeRobot, torch.compile"
PRECISION = "bf16, vision fp32"
"""LeRobot's own choice for a model in bfloat16."""
AGREE = 0.99
"""The least cosine of a peer that is the same policy. LeRobot rounds its rotary frequencies to bf16 and
computes vision in fp32, so it is farther from the reference than an engine in bf16 may be."""
CALLS = 5, 50
"""A peer's warm-up calls and calls that count, at most."""
FEWEST = 5
"""Calls that count even where they outlast the time a peer was given."""


@dataclass(frozen=True)
class Setting:
    """python: an interpreter with torch, transformers and lerobot. checkpoint: model.safetensors of the
    bundle's policy, under openpi's names. minutes: for each peer. compiled: step counts to compile, each of
    which compiles anew. mode: torch.compile's."""

    python: Path
    checkpoint: Path | None
    device: str
    minutes: float
    compiled: tuple[int, ...]
    mode: str


def measure_peers(
    run: Run, subject: Subject, setting: Setting | None, calls: Calls, remaining: Callable[[], float]
) -> tuple[Peer, ...]:
    """Both peers, measured or with the reason why not. remaining: minutes that are left for all of it."""
    steps = tuple(s.steps for s in run.steps)
    found: list[Peer] = []
    for name, wanted in ((EAGER, steps), (COMPILED, tuple(n for n in steps if _compiled(setting, n)))):
        reason = _reason(subject, setting, wanted)
        if reason is None and setting is not None:
            minutes = min(setting.minutes, remaining())
            found.append(_measure(name, wanted, subject, setting, calls, minutes))
        else:
            found.append(Peer(name, PRECISION, reason))
    return tuple(found)


def rated(peers: tuple[Peer, ...], run: Run) -> tuple[Peer, ...]:
    """With their ratios to a run of the same profile; none for a peer that is absent or another policy."""
    medians = {s.steps: s.total.median_ms for s in run.steps}
    return tuple(
        replace(
            p, ratio={n: t.median_ms / medians[n] for n, t in p.timings.items() if n in medians and p.agrees}
        )
        for p in peers
    )


def _compiled(setting: Setting | None, steps: int) -> bool:
    return setting is not None and steps in setting.compiled


def _reason(subject: Subject, setting: Setting | None, steps: tuple[int, ...]) -> str | None:
    """Why there cannot be a peer."""
    if setting is None:
        return "no interpreter with LeRobot was named (--peer)"
    if setting.checkpoint is None:
        return "the bundle's checkpoint was not named (--checkpoint)"
    if not setting.checkpoint.is_file():
        return f"{setting.checkpoint} is not there"
    if not steps:
        return "no step count to measure"
    hashes = read_manifest(subject.bundle).source.files
    expected = hashes.get(setting.checkpoint.name)
    if expected is not None and hash_file(setting.checkpoint).sha256 != expected:
        return f"{setting.checkpoint} is not the checkpoint that the bundle was exported from"
    return None


def _measure(
    name: str, steps: tuple[int, ...], subject: Subject, setting: Setting, calls: Calls, minutes: float
) -> Peer:
    manifest = read_manifest(subject.bundle)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        request, answer = folder / "request.json", folder / "answer.json"
        request.write_text(
            json.dumps(_request(folder, manifest, subject, setting, steps, calls, name == COMPILED, minutes))
        )
        fault = _run(
            [str(setting.python), "-P", lerobot_process.__file__, str(request), str(answer)], minutes
        )
        if not answer.is_file():
            return Peer(name, PRECISION, fault or "it gave no answer")
        given = json.loads(answer.read_text())
        actions = load_file(folder / "actions.safetensors")
    _, expected = golden.observation(subject.bundle, manifest.golden.file, manifest.golden.prompt)
    dims = manifest.interface.action_dims
    cosine = {
        int(n): golden.cosine(actions[f"actions.{n}"].numpy()[:, :dims], expected[int(n)][:, :dims])
        for n in given["samples"]
        if int(n) in expected
    }
    warm_up = min(calls.warm_up, CALLS[0])
    timings = {int(n): summarize(times, warm_up) for n, times in given["samples"].items() if times}
    agrees = bool(cosine) and all(c >= AGREE for c in cosine.values())
    return Peer(
        name=name if name == EAGER else f"{name} ({setting.mode})",
        precision=PRECISION,
        absent=None if timings else fault or "it finished no step count",
        cut=fault if len(timings) < len(steps) else None,
        versions=given["versions"],
        prepared_s=max(given["prepared"].values()),
        timings=timings,
        cosine=cosine,
        agrees=agrees,
    )


def _request(
    folder: Path,
    manifest: Manifest,
    subject: Subject,
    setting: Setting,
    steps: tuple[int, ...],
    calls: Calls,
    compiled: bool,
    minutes: float,
) -> dict[str, object]:
    inputs, noise = golden_inputs(subject.bundle, manifest)
    tensors = {
        "images": torch.from_numpy(inputs.images),
        "tokens": torch.from_numpy(inputs.prompt.token_ids)[None],
        "noise": torch.from_numpy(noise)[None],
    }
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "inputs.safetensors")
    return {
        "checkpoint": str(setting.checkpoint),
        "inputs": str(folder / "inputs.safetensors"),
        "actions": str(folder / "actions.safetensors"),
        "geometry": msgspec.to_builtins(manifest.geometry),
        "horizon": manifest.interface.horizon,
        "steps": steps,
        "warm_up": min(calls.warm_up, CALLS[0]),
        "repeats": min(calls.repeats, CALLS[1]),
        "fewest": min(calls.repeats, FEWEST),
        # What is left of the limit goes to the network's own start, and to its last calls.
        "seconds": minutes * 60 * 0.8,
        "device": setting.device,
        "compiled": compiled,
        "mode": setting.mode,
    }


def _run(command: list[str], minutes: float) -> str | None:
    """What went wrong, None if nothing. The process and all that it started are gone afterwards."""
    try:
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    except OSError as error:
        return f"{command[0]} does not start: {error}"
    try:
        _, wrote = process.communicate(timeout=max(minutes, 0) * 60)
    except subprocess.TimeoutExpired:
        return f"it was stopped after {minutes:.1f} minutes"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode == 0:
        return None
    last = next((line for line in reversed(wrote.splitlines()) if line.strip()), "it wrote nothing")
    return f"it ended with {process.returncode}: {last.strip()}"
