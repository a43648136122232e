"""The golden sample: one observation with the actions that the BF16 reference gave for it.

It lets a device, or anyone with the bundle, find out whether these engines on this machine still are
the policy that passed its gates.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from pi05_runtime.errors import BundleError, GateError
from pi05_runtime.policy import Policy
from pi05_runtime.targets import coarsest, find_target
from pi05_runtime.tensors import Floats, open_tensors

IMAGE, ACTIONS = "image.", "actions."
"""Prefixes of the sample's tensors: one image a camera, and one chunk of actions a step count."""


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


def observation(bundle: Path, file: str, prompt: str) -> tuple[dict[str, Any], dict[int, Floats]]:
    """(observation for `infer`, step count -> normalised actions [horizon, action width]).

    Errors: BundleError for a file that cannot be read or lacks a part of the observation.
    """
    with open_tensors(bundle / file) as tensors:
        names = tensors.keys()
        stored = {name: tensors.get_tensor(name) for name in names}
    if missing := {"state", "noise"} - stored.keys():
        raise BundleError(
            f"{bundle / file}: tensors {sorted(stored)} found, {sorted(missing)} expected too; "
            "export the bundle again"
        )
    images = {n.removeprefix(IMAGE): t for n, t in stored.items() if n.startswith(IMAGE)}
    actions = {int(n.removeprefix(ACTIONS)): t for n, t in stored.items() if n.startswith(ACTIONS)}
    return {"images": images, "prompt": prompt, "state": stored["state"], "noise": stored["noise"]}, actions


def in_turn(sample: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The observation twice, then twice with its images upside down, and so on for ever. Each follows itself
    and follows the other: a decision that takes something of the one before it is not always the same."""
    turned = {name: np.ascontiguousarray(image[::-1]) for name, image in sample["images"].items()}
    return cycle([sample] * 2 + [{**sample, "images": turned}] * 2)


def check_steady(given: Sequence[Floats], target: str) -> None:
    """given: actions for observations `in_turn`, from the first on. A kernel plan adds in one order and must
    give the same bits for the same observation and noise; other engines do not promise that.

    Errors: GateError if it does not.
    """
    others = sum(not np.array_equal(actions, given[i % 4 // 2 * 2]) for i, actions in enumerate(given))
    if others and find_target(target).engine == "plan":
        raise GateError(
            f"self-test of {target} failed: {others} of {len(given)} decisions gave other actions than the "
            "first over the same observation and noise, none expected; do not run this bundle on a robot, "
            "and report it"
        )


def selftest(bundle: Path, target: str, engines: Path | None = None) -> list[Result]:
    """Runs the golden sample at each of its step counts through the real backend.

    engines: as for `pi05_runtime.load`.
    Only the real action dimensions are compared, before unnormalisation. Errors: GateError if any
    cosine falls below the manifest's threshold, or whatever loading raises.
    """
    with Policy.load(bundle, target, engines=engines) as policy:
        return judge(policy, bundle, target)


def judge(policy: Policy, bundle: Path, target: str) -> list[Result]:
    """As `selftest`, of a policy that is loaded."""
    golden, dims = policy.manifest.golden, policy.manifest.interface.action_dims
    threshold = golden.cosine[coarsest(policy.recipes)]
    sample, expected = observation(bundle, golden.file, golden.prompt)
    if missing := set(golden.steps) - expected.keys():
        raise BundleError(
            f"{bundle / golden.file}: no actions for {sorted(missing)} steps, the manifest names "
            f"{list(golden.steps)}; export the bundle again"
        )
    results: list[Result] = []
    for steps in golden.steps:
        policy.steps = steps
        decision, preprocess_ms = policy.decide(sample)
        total = preprocess_ms + sum(decision.milliseconds.values())
        similarity = cosine(decision.actions[:, :dims], expected[steps][:, :dims])
        results.append(Result(steps, similarity, threshold, total))
    if failed := [r for r in results if not r.passed]:
        raise GateError(
            f"self-test of {target} failed: cosine "
            + ", ".join(f"{r.cosine:.6f} at {r.steps} steps" for r in failed)
            + f", at least {threshold} expected; do not run this bundle on a robot"
        )
    return results
