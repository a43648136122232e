"""A whole plan on a CPU: the pipeline's own layers as launches, interpreted, against its ONNX twin."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from export.component import component_signatures
from export.engine.plan import describe, kernels_of, write
from export.engine.plan.source import Source
from export.kernels.compile import Chip, Specialization
from export.params import load_params
from pi05_runtime import policy as policy_module
from pi05_runtime.engines import plan as plan_module
from pi05_runtime.engines.graph_engine import GraphEngine
from pi05_runtime.engines.plan import PlanProgram
from pi05_runtime.geometry import COMPONENTS
from pi05_runtime.golden import cosine, observation
from pi05_runtime.manifest import read_manifest
from pi05_runtime.plan import read_plan
from pi05_runtime.policy import Policy
from tests.kernels.interpreting_device import InterpretingDevice, stand_ins

CHIP, TARGET = "9.0", "sm90-plan"
Plans = tuple[dict[str, Path], list[Specialization]]


@pytest.fixture(scope="module")
def plans(
    workspace: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[dict[str, Path], list]]:
    """(a plan of each component, what is to be interpreted), in the workspace's folder."""
    out = tmp_path_factory.mktemp("plans")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        params = load_params()
        buckets = params.export.prompt_buckets
        described = {
            c: describe(Chip.of(CHIP), c, Source(c, params.components[c].recipe), buckets) for c in COMPONENTS
        }
        wanted = list(dict.fromkeys(s for c, shapes in described.items() for s in kernels_of(c, shapes)))
        for component, shapes in described.items():
            write(out / f"{component}.plan", component, CHIP, shapes, stand_ins(wanted))
        yield {c: out / f"{c}.plan" for c in described}, wanted


def fewest_programs(file: Path) -> dict[str, int]:
    """The variants that are soonest interpreted."""
    launches = [launch for shaped in read_plan(file).plan.shaped for launch in shaped.launches]
    programs = {la.group: [math.prod(variant.grid) for variant in la.variants] for la in launches}
    return {group: found.index(min(found)) for group, found in programs.items()}


def test_a_decision_equals_the_twin(plans, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, wanted = plans
    monkeypatch.setattr(plan_module, "compute_capability", lambda: CHIP)
    signatures = component_signatures()
    device = InterpretingDevice(wanted)
    choices = {c: fewest_programs(file) for c, file in files.items()}
    engine = GraphEngine(device, PlanProgram(files, signatures, device, choices), signatures)
    bundle = workspace / "artifacts" / "bundle"
    manifest = read_manifest(bundle)
    sample, _ = observation(bundle, manifest.golden.file, manifest.golden.prompt)
    # A few rows alone: an interpreter takes a second for each.
    sample["images"] = {name: image[:4, :112] for name, image in sample["images"].items()}
    with Policy.load(bundle, "cpu-ort", steps=1) as policy:
        expected, _ = policy.decide(sample)
    monkeypatch.setattr(policy_module, "open_engine", lambda *_: engine)
    with Policy.open(
        bundle, manifest, TARGET, manifest.targets["cpu-ort"].engines, bundle, steps=1
    ) as policy:
        found, _ = policy.decide(sample)
    # Of one step's velocity: what is left of the noise behind it is small, and has hardly a direction.
    assert cosine(found.actions - sample["noise"], expected.actions - sample["noise"]) > 0.9995
    assert device.launched.count("resize") == 4  # two views, as warm-up and replayed
    assert device.leaks == 0
