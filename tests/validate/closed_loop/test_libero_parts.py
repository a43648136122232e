"""What LIBERO's simulator is made of, as far as it needs no LIBERO."""

import numpy as np
import pytest
from PIL import Image

from validate.closed_loop.simulators.libero_expert import CARRIED, carry
from validate.closed_loop.simulators.libero_observation import axis_angle, observation, picture
from validate.closed_loop.suites import SUITES

HALF = np.sqrt(0.5)


@pytest.mark.parametrize(
    ("quaternion", "expected"),
    [
        ([0, 0, 0, 1], [0, 0, 0]),
        ([0, 0, HALF, HALF], [0, 0, np.pi / 2]),
        ([0, 0, -HALF, -HALF], [0, 0, -3 * np.pi / 2]),
        ([1, 0, 0, 0], [np.pi, 0, 0]),
        ([0.0, 0.6, 0.0, -0.8], [0, 2 * np.arccos(-0.8), 0]),
        ([1e-9, 0, 0, 1 + 1e-12], [0, 0, 0]),
    ],
)
def test_a_rotation_is_its_axis_times_its_angle(quaternion: list[float], expected: list[float]):
    found = axis_angle(np.array(quaternion, np.float64))
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_picture_is_turned_and_shrunk():
    frame = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    turned = Image.fromarray(np.rot90(frame, 2)).resize((224, 224), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(picture(frame), np.asarray(turned))


@pytest.mark.parametrize(
    ("shape", "rows", "columns"),
    [
        ((128, 256), slice(56, 168), slice(None)),
        ((480, 240), slice(None), slice(56, 168)),
        ((7, 301), slice(109, 114), slice(None)),
    ],
)
def test_a_picture_keeps_its_proportions(shape: tuple[int, int], rows: slice, columns: slice):
    expected = np.zeros((224, 224, 3), np.uint8)
    expected[rows, columns] = 200
    np.testing.assert_array_equal(picture(np.full((*shape, 3), 200, np.uint8)), expected)


def test_an_observation_has_the_keys_of_openpis_client():
    frame = np.zeros((256, 256, 3), np.uint8)
    wrist = frame + np.uint8(9)
    seen = {
        "agentview_image": frame,
        "robot0_eye_in_hand_image": wrist,
        "robot0_eef_pos": np.array([1.0, 2.0, 3.0]),
        "robot0_eef_quat": np.array([0.0, 0.0, HALF, HALF]),
        "robot0_gripper_qpos": np.array([0.04, -0.04]),
    }
    found = observation(seen, "turn on the stove")
    state = found["observation/state"]
    assert isinstance(state, np.ndarray) and state.dtype == np.float32
    np.testing.assert_allclose(state, [1, 2, 3, 0, 0, np.pi / 2, 0.04, -0.04], rtol=1e-6)
    assert np.all(found["observation/image"] == 0) and np.all(found["observation/wrist_image"] == 9)
    assert found["prompt"] == "turn on the stove" and len(found) == 4


@pytest.mark.parametrize(
    ("suite", "tasks", "steps"),
    [
        ("libero_spatial", 10, 220),
        ("libero_object", 10, 280),
        ("libero_goal", 10, 300),
        ("libero_10", 10, 520),
        ("libero_90", 90, 400),
    ],
)
def test_budgets_are_openpis(suite: str, tasks: int, steps: int):
    found = SUITES[suite]
    assert found.tasks == tuple(str(number) for number in range(tasks))
    assert (found.max_steps, found.executed, found.episodes, found.first_scene) == (steps, 5, 50, 0)


@pytest.mark.parametrize(
    ("bowl", "direction", "closed"),
    [
        ((0.2, -0.1, 0.0), (0, 0, 1), True),
        ((0.2, -0.1, CARRIED), (-1, 1, 0), True),
        ((0.0, 0.0, CARRIED), (0, 0, -1), True),
        ((0.0, 0.0, 0.01), (0, 0, -1), False),
    ],
    ids=["lift", "carry", "lower", "let go"],
)
def test_the_expert_lifts_carries_lowers_and_lets_go(
    bowl: tuple[float, float, float], direction: tuple[int, int, int], closed: bool
):
    move, close = carry(np.array(bowl))
    assert (tuple(np.sign(move)), close) == (direction, closed)
