"""Who carries LIBERO's black bowl to the plate, from the simulator's own state.

It tests the harness, and can label whatever a policy sees. It therefore remembers nothing: each action
follows from where the hand, the bowl and the plate are, so that it goes on from any state and tries again
after a slip. The bowl is too wide for the gripper, so it is held by its rim.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

SUITES = ("libero_spatial",)
BOWL, PLATE = "akita_black_bowl_1", "plate_1"

# Metres, of the point between the finger tips, from the bowl's origin in its base.
RIM, GRIP = 0.05, 0.03  # beside it and above it, where the rim is held
HOVER = 0.12
# Metres, of the bowl, from the plate.
CARRIED, CLEAR, LOW, PLACED = 0.155, 0.12, 0.07, 0.02  # above it
NEAR, OVER, ON = 0.04, 0.012, 0.03  # beside it; LIBERO's success is below ON
GAIN = 10.0  # an action of 1 asks for 5 cm, and the arm lags behind


def act(domain: Any) -> NDArray[np.float32]:
    """domain: robosuite's environment. Returns the move, no rotation, and the gripper: 1 closes it."""
    hand = domain.sim.data.site_xpos[domain.robots[0].eef_site_id]
    bowl, plate = position(domain, BOWL), position(domain, PLATE)
    move, close = carry(bowl - plate) if is_held(domain) else fetch(domain, hand, bowl, plate)
    return np.array([*np.clip(GAIN * move, -1, 1), 0, 0, 0, 1 if close else -1], np.float32)


def carry(bowl: NDArray[np.float64]) -> tuple[NDArray[np.float64], bool]:
    """Where the hand moves, and whether it stays closed. bowl: from the plate."""
    beside, above = np.linalg.norm(bowl[:2]), bowl[2]
    if beside < (ON - 0.005 if above < LOW else OVER):
        return np.array([-bowl[0], -bowl[1], -0.1]), bool(above > PLACED)
    if above < CLEAR and beside > NEAR:
        return np.array([0, 0, CARRIED - above]), True
    return np.array([-bowl[0], -bowl[1], CARRIED - above]), True


def fetch(
    domain: Any, hand: NDArray[np.float64], bowl: NDArray[np.float64], plate: NDArray[np.float64]
) -> tuple[NDArray[np.float64], bool]:
    if np.linalg.norm((bowl - plate)[:2]) < ON:
        return np.array([0, 0, 0.05]), False
    to_rim = bowl + np.array([0, side(domain, bowl) * RIM, GRIP]) - hand
    beside = np.linalg.norm(to_rim[:2])
    if beside < 0.02:
        return to_rim, bool(beside < 0.015 and abs(to_rim[2]) < 0.012)
    return to_rim + np.array([0, 0, HOVER - GRIP]), False


def side(domain: Any, bowl: NDArray[np.float64]) -> float:
    """Of the bowl, along y, in which the gripper opens: the robot's, unless the hand would hit something."""
    nearer = -np.sign(bowl[1])
    rim = bowl + np.array([0, nearer * RIM, 0])
    others = (position(domain, name) for name in domain.objects_dict if name not in (BOWL, PLATE))
    taken = any(np.all(np.abs(other - rim) < (0.05, 0.09, 0.05)) for other in others)
    return -nearer if taken else nearer


def is_held(domain: Any) -> bool:
    """By both fingers, and with all their force."""
    gripper = domain.robots[0].gripper
    fingers = [gripper.important_geoms[name] for name in ("left_finger", "right_finger")]
    return gripper.current_action[1] > 0.95 and domain._check_grasp(fingers, domain.objects_dict[BOWL])


def position(domain: Any, name: str) -> NDArray[np.float64]:
    return domain.sim.data.body_xpos[domain.obj_body_id[name]]
