"""The demo's own networks behind the graph engine, and the same decisions by ONNX Runtime alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pi05_runtime import golden, load
from pi05_runtime.engines.graph_engine import GraphEngine
from pi05_runtime.engines.ort import OrtEngine
from pi05_runtime.errors import EngineError
from pi05_runtime.geometry import COMPONENTS, signatures
from pi05_runtime.policy import Policy
from tests.pipeline import TARGET
from tests.runtime.host_device import HostDevice, HostProgram


@pytest.fixture(scope="module")
def policy(workspace: Path) -> Policy:
    return load(workspace / "artifacts" / "bundle", TARGET)


@pytest.fixture
def sample(policy: Policy, workspace: Path) -> dict[str, Any]:
    manifest = policy.manifest
    return golden.observation(
        workspace / "artifacts" / "bundle", manifest.golden.file, manifest.golden.prompt
    )[0]


@pytest.fixture
def ort(policy: Policy) -> OrtEngine:
    assert isinstance(policy.engine, OrtEngine)
    return policy.engine


@pytest.fixture
def graphs(policy: Policy, ort: OrtEngine) -> Iterator[Policy]:
    """The policy with a GraphEngine whose networks are the sessions of its ONNX Runtime engine."""
    geometry, interface = policy.manifest.geometry, policy.manifest.interface
    ports = signatures(geometry, len(interface.cameras), interface.horizon)

    def function(component: str) -> Any:
        integers = {port.name for port in ports[component].inputs if port.dtype == "int32"}

        def run(given: dict[str, Any]) -> dict[str, Any]:
            return ort.run(
                component, {n: a.astype(np.int32) if n in integers else a for n, a in given.items()}
            )

        return run

    device = HostDevice()
    program = HostProgram(device, {c: function(c) for c in COMPONENTS}, ports)
    policy.engine = GraphEngine(device, program, ports)
    yield policy
    policy.engine.close()
    policy.engine = ort
    assert device.leaks == 0


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_graphs_act_as_the_sessions_do(
    graphs: Policy, ort: OrtEngine, sample: dict[str, Any], steps: int
) -> None:
    graphs.steps = steps
    found, _ = graphs.decide(sample)
    engine, graphs.engine = graphs.engine, ort
    expected, _ = graphs.decide(sample)
    graphs.engine = engine
    # The ports round activations to bf16. What is compared is the way from the noise: behind few steps the
    # actions are what little is left of it.
    ways = (decision.actions - sample["noise"] for decision in (found, expected))
    assert golden.cosine(*ways) > 0.9999
    again, _ = graphs.decide(sample)
    np.testing.assert_array_equal(again.actions, found.actions)


def test_denoise_of_ort_uses_the_last_decision(
    policy: Policy, ort: OrtEngine, sample: dict[str, Any]
) -> None:
    policy.steps = 2
    decision, _ = policy.decide(sample)
    noise = np.asarray(sample["noise"], np.float32)
    alone = ort.denoise(noise, policy._schedule)
    np.testing.assert_array_equal(alone.actions, decision.actions)
    assert list(alone.milliseconds) == ["denoise"]
    assert list(decision.milliseconds) == ["vision", "prefill", "denoise"]
    assert (ort.denoise(noise + 1, policy._schedule).actions != decision.actions).any()


def test_closed_ort_engine_has_no_decision(workspace: Path) -> None:
    policy = load(workspace / "artifacts" / "bundle", TARGET, 1)
    with pytest.raises(EngineError, match="call `decide` first"):
        policy.engine.denoise(np.zeros((10, 32), np.float32), policy._schedule)
    policy.engine.close()
    with pytest.raises(EngineError, match="call `decide` first"):
        policy.engine.denoise(np.zeros((10, 32), np.float32), policy._schedule)
