"""Commands on a bundle in a folder: look at it, let it act, test it."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pi05_runtime import golden, load
from pi05_runtime.cli.commands import Commands, engine_lines
from pi05_runtime.errors import BundleError, ObservationError
from pi05_runtime.manifest import Manifest, TargetFiles, encode, read_manifest
from pi05_runtime.policy import Policy
from pi05_runtime.verify import verify


def inspect(arguments: argparse.Namespace) -> None:
    """Prints the manifest's summary after checking every file that is there.

    Errors: BundleError if no target has all of its files, after the summary that says so.
    """
    bundle: Path = arguments.bundle
    manifest = read_manifest(bundle)
    present = [name for name in manifest.files if (bundle / name).exists()]
    verify(bundle, manifest.files, present)
    if arguments.json:
        print(encode(manifest).decode(), end="")
        return
    print("\n".join(_summary(manifest, present)))
    lacking = {name: set(entry.files) - set(present) for name, entry in manifest.targets.items()}
    if all(lacking.values()):
        raise BundleError(
            "no target has all of its files; "
            + "; ".join(f"{name} lacks {', '.join(sorted(files))}" for name, files in lacking.items())
            + "; copy the bundle again"
        )


def run(arguments: argparse.Namespace) -> None:
    """Makes one decision and prints its actions in the robot's units."""
    with load(arguments.bundle, arguments.target, arguments.steps, arguments.engines) as policy:
        observation = _observation(arguments, policy)
        result = policy.infer(observation)
    if arguments.json:
        print(json.dumps({"actions": result["actions"].tolist(), "timings": result["timings"]}))
        return
    print(f"prompt: {observation['prompt']}\nactions [horizon, dims]:")
    print(np.array2string(result["actions"], precision=4, suppress_small=True, threshold=sys.maxsize))
    print("  ".join(f"{name} {ms:.2f} ms" for name, ms in result["timings"].items()))


def selftest(arguments: argparse.Namespace) -> None:
    """The golden sample through the real backend; fails on any step count below its threshold."""
    for r in golden.selftest(arguments.bundle, arguments.target, arguments.engines):
        print(f"{r.steps:>3} steps  cosine {r.cosine:.6f} >= {r.threshold}  {r.total_ms:.1f} ms")
    print(f"self-test of {arguments.target} passed")


def _summary(manifest: Manifest, present: list[str]) -> list[str]:
    interface = manifest.interface
    recipes = [f"{c} {' or '.join(v.recipe for v in vs)}" for c, vs in manifest.components.items()]
    size = sum(manifest.files[name].size for name in present)
    gates = [
        f"gate     {target} {name} ({gate.judged}): cosine {gate.cosine:.6f} >= {gate.threshold}"
        for target, results in manifest.gates.items()
        for name, gate in results.items()
    ]
    gates += [
        f"gate     {target} in {a.suite} ({a.judged}): {a.successes} of {a.scenes} scenes solved, {a.lost} "
        f"lost to the reference, {a.won} won; divergence {a.divergence:.3g} <= {a.largest_divergence:g}"
        for target, a in manifest.closed_loop.items()
    ]
    return [
        f"{manifest.name} {manifest.version} ({manifest.license}), schema {manifest.schema}",
        f"files    {len(present)} of {len(manifest.files)} present and intact, {size / 1e6:.1f} MB",
        f"recipes  {', '.join(recipes)}",
        f"cameras  {', '.join(interface.cameras)}; prompt format {interface.prompt_format}",
        f"actions  {interface.horizon} x {interface.action_dims}; steps {list(manifest.steps)}, "
        f"default {manifest.default_steps}; prompt buckets {list(manifest.prompt_buckets)}",
        *gates,
        *(line for target, entry in manifest.targets.items() for line in _target(target, entry)),
    ]


def _target(name: str, entry: TargetFiles) -> list[str]:
    chip = entry.lock.compute_capability
    built = f"{entry.lock.library} {entry.lock.version}" + (f", compute capability {chip}" if chip else "")
    return [f"target   {name}: {built}", *engine_lines(entry.engines)]


def _observation(arguments: argparse.Namespace, policy: Policy) -> dict[str, Any]:
    """What the command line describes, or the golden sample if it describes nothing."""
    manifest = policy.manifest
    given = {"--image": arguments.image, "--prompt": arguments.prompt, "--state": arguments.state}
    absent = [flag for flag, value in given.items() if value is None]
    if len(absent) == len(given):
        return golden.observation(arguments.bundle, manifest.golden.file, manifest.golden.prompt)[0]
    if manifest.interface.prompt_format == "plain" and "--state" in absent:
        absent.remove("--state")
    if absent:
        raise ObservationError(
            f"{', '.join(absent)} not given: an observation needs all of {', '.join(given)}; add what is "
            "missing, or give none of them for the golden sample"
        )
    observation = {"images": _images(arguments.image), "prompt": arguments.prompt}
    return observation if arguments.state is None else observation | {"state": arguments.state}


def _images(given: list[str]) -> dict[str, Any]:
    images: dict[str, Any] = {}
    for entry in given:
        camera, separator, path = entry.partition("=")
        if not separator:
            raise ObservationError(f"--image {entry!r}: expected camera=path, for example front=front.png")
        if camera in images:
            raise ObservationError(f"--image {entry!r}: a second image for camera {camera!r}; give one each")
        try:
            with Image.open(path) as image:
                images[camera] = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:  # all three are what Pillow raises for damage
            raise ObservationError(f"--image {entry!r}: no readable image found ({error})") from error
    return images


def add_commands(commands: Commands) -> None:
    def add(name: str, command: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("bundle", type=Path, help="bundle folder")
        sub.set_defaults(command=command)
        return sub

    def add_target(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--target", required=True, help="a target of the bundle, for example cpu-ort")

    def add_engines(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--engines", type=Path, help="a folder that `pi05 rebuild` made of this bundle")

    sub = add("inspect", inspect, "show what a bundle is, and check the files that are there")
    sub.add_argument("--json", action="store_true", help="the whole manifest")
    sub = add("run", run, "make one decision, on the golden sample unless an observation is given")
    add_target(sub)
    add_engines(sub)
    sub.add_argument("--steps", type=int, help="Euler steps; the manifest's default if absent")
    sub.add_argument("--image", action="append", metavar="CAMERA=PATH", help="once for each camera")
    sub.add_argument("--state", type=float, nargs="+", help="the robot's state, in its own units")
    sub.add_argument("--prompt", help="the instruction")
    sub.add_argument("--json", action="store_true", help="actions and timings as JSON")
    sub = add("selftest", selftest, "run the golden sample and compare with its stored actions")
    add_target(sub)
    add_engines(sub)
