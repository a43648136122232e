"""The golden sample: one observation with the actions that the BF16 reference gave for it.

It lets a device, or anyone with the bundle, find out whether these engines on this machine still are
the policy that passed its gates.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from pi05_runtime.errors import BundleError, GateError
from pi05_runtime.policy import Policy

IMAGE, ACTIONS = "image.", "actions."


class Result(msgspec.Struct, frozen=True):
    """One step count of a self-test. total_ms: preprocessing and engines of this one decision."""

    steps: int
    cosine: float
    threshold: float
    total_ms: float

    @property
    def passed(self) -> bool:
        return self.cosine >= self.threshold


def cosine(a: npt.NDArray[np.floating[Any]], b: npt.NDArray[np.floating[Any]]) -> float:
    """Cosine of two arrays as flat vectors, in double. Two zero vectors agree; NaN never does."""
    x, y = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    norm = np.linalg.norm(x) * np.linalg.norm(y)
    return float(x @ y / norm) if norm != 0 else float(np.array_equal(x, y))


def observation(bundle: Path, file: str, prompt: str) -> tuple[dict[str, Any], Mapping[int, Any]]:
    """(observation for `infer`, step count -> normalised actions). Errors: BundleError."""
    try:
        stored = load_file(bundle / file)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{bundle / file} cannot be read ({error}); pull the bundle again") from None
    images = {n.removeprefix(IMAGE): t for n, t in stored.items() if n.startswith(IMAGE)}
    actions = {int(n.removeprefix(ACTIONS)): t for n, t in stored.items() if n.startswith(ACTIONS)}
    return {"images": images, "prompt": prompt, "state": stored["state"], "noise": stored["noise"]}, actions


def selftest(bundle: Path, target: str) -> list[Result]:
    """Runs the golden sample at each of its step counts through the real backend.

    Errors: GateError if any falls below the manifest's threshold, or whatever loading raises.
    """
    policy = Policy.load(bundle, target)
    golden, dims = policy.manifest.golden, policy.manifest.interface.action_dims
    sample, expected = observation(bundle, golden.file, golden.prompt)
    results: list[Result] = []
    for steps in golden.steps:
        policy.steps = steps
        decision, preprocess_ms = policy.decide(sample)
        total = preprocess_ms + sum(decision.milliseconds.values())
        similarity = cosine(decision.actions[:, :dims], expected[steps][:, :dims])
        results.append(Result(steps, similarity, golden.cosine, total))
    if failed := [r for r in results if not r.passed]:
        raise GateError(
            f"self-test of {target} failed: cosine "
            + ", ".join(f"{r.cosine:.6f} at {r.steps} steps" for r in failed)
            + f", at least {golden.cosine} expected; do not run this bundle on a robot"
        )
    return results
