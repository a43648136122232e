"""What openpi's client makes of LIBERO's sensors: pictures turned and shrunk, a rotation as axis and angle.

The arithmetic is part of what a policy was trained on, so it is openpi's to the bit; its packages are not.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 224


def observation(seen: Mapping[str, NDArray[Any]], prompt: str) -> dict[str, NDArray[Any] | str]:
    """seen: robosuite's sensors by their names."""
    state = (seen["robot0_eef_pos"], axis_angle(seen["robot0_eef_quat"]), seen["robot0_gripper_qpos"])
    return {
        "observation/image": picture(seen["agentview_image"]),
        "observation/wrist_image": picture(seen["robot0_eye_in_hand_image"]),
        "observation/state": np.concatenate(state).astype(np.float32),
        "prompt": prompt,
    }


def picture(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 RGB [height, width, 3] -> [224, 224, 3]: turned by 180 degrees, as in the demonstrations; shrunk
    or enlarged until it fits, in its own proportions; black around it."""
    height, width = frame.shape[:2]
    ratio = max(height, width) / SIDE
    size = int(width / ratio), int(height / ratio)
    turned = Image.fromarray(np.ascontiguousarray(frame[::-1, ::-1]))
    square = Image.new("RGB", (SIDE, SIDE))
    left, top = (max(0, (SIDE - length) // 2) for length in size)
    square.paste(turned.resize(size, Image.Resampling.BILINEAR), (left, top))
    return np.asarray(square)


def axis_angle(quaternion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Unit quaternion [x, y, z, w] -> axis times angle, 0 to 2 pi. -q, which is the same rotation as q, has
    another angle and the opposite axis: policies know it so."""
    w = min(max(float(quaternion[3]), -1.0), 1.0)
    sine = math.sqrt(1.0 - w * w)
    if sine == 0.0:
        return np.zeros(3)
    return quaternion[:3] * 2.0 * math.acos(w) / sine
