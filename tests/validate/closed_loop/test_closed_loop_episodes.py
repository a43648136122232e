"""One scene at a time: what policies are given, what is compared, and what counts as a failure."""

import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from pi05_runtime.errors import GateError
from tests.validate.closed_loop.fake_policy import SIMULATOR, SUITE, FakePolicy, decide, failing, off_by
from validate.closed_loop.episodes import Expert, Scene, Station, flow_noise
from validate.closed_loop.policies import Acts, Spoiled
from validate.closed_loop.records import ClosedLoopError, Episode
from validate.closed_loop.simulator import SimulatorProcess
from validate.closed_loop.suites import Suite

SCENE = Scene("fake", "left", 2)
PROMPTS = {"left": "go left", "right": "go right"}


@pytest.fixture
def simulator() -> Iterator[SimulatorProcess]:
    with closing(SimulatorProcess(Path(sys.executable), SIMULATOR)) as process:
        yield process


def ran(
    simulator: SimulatorProcess, scene: Scene, suite: Suite = SUITE, **policies: Acts
) -> dict[str, Episode]:
    reference = "reference" if "reference" in policies else None
    station = Station(simulator, suite, policies, reference)
    return {episode.policy: episode for episode, _ in station.run(scene, policies)}


def test_a_policy_that_sees_succeeds(simulator: SimulatorProcess):
    policy = FakePolicy()
    found = ran(simulator, SCENE, policy=policy.in_process())["policy"]
    assert found.success and found.error is None and found.divergence is None
    assert (found.suite, found.task, found.scene) == SCENE
    assert 0 < found.steps < SUITE.max_steps and len(found.decision_ms) == len(policy.asked)
    assert len(policy.asked) == -(-found.steps // SUITE.executed)


def test_an_episode_ends_with_its_budget(simulator: SimulatorProcess):
    found = ran(simulator, SCENE, lazy=FakePolicy(lambda o: 0 * decide(o)).in_process())["lazy"]
    assert not found.success and found.steps == SUITE.max_steps and found.error is None


def test_the_last_chunk_is_cut_to_the_budget(simulator: SimulatorProcess):
    short = replace(SUITE, max_steps=6)
    found = ran(simulator, SCENE, short, lazy=FakePolicy(lambda o: 0 * decide(o)).in_process())["lazy"]
    assert found.steps == 6 and len(found.decision_ms) == 2


def test_every_policy_starts_from_the_same_scene_and_noise(simulator: SimulatorProcess):
    one, two = FakePolicy(), FakePolicy(off_by(0.02))
    ran(simulator, SCENE, one=one.in_process(), two=two.in_process())
    assert np.array_equal(one.asked[0]["images"]["front"], two.asked[0]["images"]["front"])
    for k in range(2):
        assert np.array_equal(one.asked[k]["noise"], flow_noise(SCENE, k, (5, 32)))
        assert np.array_equal(one.asked[k]["noise"], two.asked[k]["noise"])
    assert not np.array_equal(one.asked[0]["noise"], one.asked[1]["noise"])


@pytest.mark.parametrize("other", [("fake", "left", 3), ("fake", "right", 2), ("more", "left", 2)])
def test_noise_is_of_one_scene(other: tuple[str, str, int]):
    assert not np.array_equal(flow_noise(SCENE, 0, (5, 32)), flow_noise(Scene(*other), 0, (5, 32)))


def test_noise_stays_what_it_was():
    """Or what was run on another day is no pair."""
    assert flow_noise(Scene("metaworld", "reach-v3", 50_000), 3, (10, 32))[0, 0] == np.float32(1.06993)


def test_divergence_is_measured_where_the_reference_decided(simulator: SimulatorProcess):
    reference, other = FakePolicy(), FakePolicy(off_by(0.02))
    found = ran(simulator, SCENE, reference=reference.in_process(), other=other.in_process())
    decisions = len(found["reference"].decision_ms)
    assert found["reference"].divergence is None
    assert found["other"].divergence == pytest.approx([0.01] * decisions)  # one of two dimensions
    checking_cameras = 2
    asked = other.asked[checking_cameras : checking_cameras + decisions]
    for seen, expected in zip(asked, reference.asked[checking_cameras:], strict=True):
        assert np.array_equal(seen["state"], expected["state"])
        assert np.array_equal(seen["noise"], expected["noise"])


def test_a_reference_that_is_not_wanted_is_acted_for_what_is_seen(simulator: SimulatorProcess):
    policies: dict[str, Acts] = {"reference": FakePolicy().in_process(), "other": FakePolicy().in_process()}
    together = {e.policy: e for e, _ in Station(simulator, SUITE, policies, "reference").run(SCENE, policies)}
    alone = [e for e, _ in Station(simulator, SUITE, policies, "reference").run(SCENE, {"other"})]
    assert [e.policy for e in alone] == ["other"] and alone[0].divergence == together["other"].divergence


def test_a_policy_that_refuses_has_failed(simulator: SimulatorProcess):
    broken = FakePolicy(failing).in_process()
    found = ran(simulator, SCENE, reference=FakePolicy().in_process(), broken=broken)
    assert found["reference"].success and not found["broken"].success
    assert found["broken"].error == "actions: NaN found, finite numbers expected"
    assert found["broken"].divergence == ()


def test_actions_that_are_no_numbers_have_failed(simulator: SimulatorProcess):
    broken = FakePolicy(lambda o: decide(o) * np.nan).in_process()
    error = ran(simulator, SCENE, broken=broken)["broken"].error
    assert error is not None and "finite numbers [horizon, dims] expected" in error


def test_a_policy_of_another_robot_is_no_pair(simulator: SimulatorProcess):
    other = FakePolicy(lambda o: decide(o)[:, :1]).in_process()
    with pytest.raises(ClosedLoopError, match=r"'other': actions of shape \[4, 1\] found.* \[4, 2\]"):
        ran(simulator, SCENE, reference=FakePolicy().in_process(), other=other)


@pytest.mark.parametrize("where", ["reset", "execute"])
def test_what_a_simulator_raises_fails_one_episode(
    simulator: SimulatorProcess, monkeypatch: pytest.MonkeyPatch, where: str
):
    monkeypatch.setenv("SIMULATOR_FAULT", f"{where}:2")
    with closing(SimulatorProcess(Path(sys.executable), SIMULATOR)) as faulty:
        broken = ran(faulty, SCENE, policy=FakePolicy().in_process())["policy"]
        assert not broken.success
        assert broken.error == f"{where}: ValueError: the line is broken in scene 2"
        assert ran(faulty, SCENE._replace(number=3), policy=FakePolicy().in_process())["policy"].success


def test_the_expert_needs_no_observation_and_is_not_compared(simulator: SimulatorProcess):
    found = ran(simulator, SCENE, reference=FakePolicy().in_process(), expert=Expert(simulator))
    assert found["expert"].success and found["expert"].divergence is None


def test_a_simulator_without_an_expert(simulator: SimulatorProcess, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SIMULATOR_FAULT", "expert:0")
    process = closing(SimulatorProcess(Path(sys.executable), SIMULATOR))
    with process as inexpert, pytest.raises(ClosedLoopError, match="it has no expert"):
        ran(inexpert, SCENE, expert=Expert(inexpert))


@pytest.mark.parametrize("kind", ["black-images", "wrong-prompt"])
def test_a_mutant_fails_and_diverges(simulator: SimulatorProcess, kind: str):
    policy = FakePolicy().in_process()
    found = ran(simulator, SCENE, reference=policy, mutant=Spoiled(policy, kind, PROMPTS))
    assert found["reference"].success and not found["mutant"].success
    divergence = found["mutant"].divergence
    assert divergence is not None and min(divergence) > 0.05


def swapped(observation):
    images = dict(zip(("front", "wrist"), reversed(observation["images"].values()), strict=True))
    return decide({**observation, "images": images})


def test_a_policy_whose_cameras_are_exchanged_is_refused(simulator: SimulatorProcess):
    wrong = FakePolicy(swapped).in_process()
    with pytest.raises(GateError, match=r"'wrong': shown a picture by one camera alone.*front or .*wrist"):
        ran(simulator, SCENE, reference=FakePolicy().in_process(), wrong=wrong)


def test_the_check_of_cameras_lets_their_mutant_through(simulator: SimulatorProcess):
    policy = FakePolicy().in_process()
    ran(simulator, SCENE, reference=policy, mutant=Spoiled(policy, "swapped-cameras", PROMPTS))


def test_the_check_of_cameras_must_be_able_to_fail(simulator: SimulatorProcess):
    blind = FakePolicy(lambda o: np.full((5, 2), 0.1, np.float32)).in_process()
    with pytest.raises(GateError, match="'mutant': its cameras are exchanged and its answers do not show it"):
        ran(simulator, SCENE, reference=blind, mutant=Spoiled(blind, "swapped-cameras", PROMPTS))


def test_a_reference_that_sees_little_accuses_nobody(simulator: SimulatorProcess):
    generator = np.random.default_rng(0)
    blind = FakePolicy(lambda o: 0.1 + 1e-3 * generator.standard_normal((5, 2), np.float32)).in_process()
    assert set(ran(simulator, SCENE, reference=blind, other=blind)) == {"reference", "other"}


def test_noise_of_two_shapes_is_no_pair(simulator: SimulatorProcess):
    odd = FakePolicy().in_process()
    odd.noise_shape = (5, 16)
    with pytest.raises(ClosedLoopError, match="noise of one shape expected"):
        Station(simulator, SUITE, {"reference": FakePolicy().in_process(), "odd": odd}, "reference")
