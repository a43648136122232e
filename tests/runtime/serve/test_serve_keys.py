"""What `--map` takes and refuses, and what becomes of a robot's keys."""

from typing import Any

import msgspec
import numpy as np
import pytest

from pi05_runtime.errors import ObservationError
from pi05_runtime.interface import Interface, Normalization, Statistics
from pi05_runtime.serve.keys import Keys

LIBERO = Interface(
    cameras=("image", "wrist_image"),
    prompt_format="state",
    state_dims=8,
    action_dims=7,
    horizon=10,
    max_prompt_tokens=200,
    image_convention="openpi",
    normalization=Normalization("quantile", "quantile", Statistics(), Statistics(), "openpi"),
)
FRONT, WRIST = np.full((4, 6, 3), 1, np.uint8), np.full((4, 6, 3), 2, np.uint8)
STATE = np.arange(8.0)
SENT: dict[str, Any] = {
    "observation/image": FRONT,
    "observation/wrist_image": WRIST,
    "observation/state": STATE,
    "prompt": "open the drawer",
}


def test_liberos_keys_need_no_map() -> None:
    assert Keys(LIBERO).observation(SENT) == {
        "images": {"image": FRONT, "wrist_image": WRIST},
        "state": STATE,
        "prompt": "open the drawer",
    }


def test_droids_keys_with_a_map() -> None:
    maps = (
        "image=observation/exterior_image_1_left",
        "wrist_image=observation/wrist_image_left",
        "state=observation/joint_position,observation/gripper_position",
    )
    sent = {
        "observation/exterior_image_1_left": FRONT,
        "observation/wrist_image_left": WRIST,
        "observation/joint_position": STATE[:7],
        "observation/gripper_position": STATE[7],
        "prompt": "open the drawer",
    }
    found = Keys(LIBERO, maps).observation(sent)
    np.testing.assert_array_equal(found.pop("state"), STATE)
    assert found == {"images": {"image": FRONT, "wrist_image": WRIST}, "prompt": "open the drawer"}


def test_alohas_frames_have_their_channels_first() -> None:
    sent = SENT | {"observation/image": FRONT.transpose(2, 0, 1)}
    image = Keys(LIBERO).observation(sent)["images"]["image"]
    np.testing.assert_array_equal(image, FRONT)
    assert image.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize("shape", [(3, 4, 3), (3, 3, 3), (3, 6), (1, 3, 4, 6), (4, 6, 3)])
def test_other_images_stay_as_they_are(shape: tuple[int, ...]) -> None:
    frame = np.zeros(shape, np.uint8)
    assert Keys(LIBERO).observation(SENT | {"observation/image": frame})["images"]["image"] is frame


def test_a_plain_prompt_needs_no_state() -> None:
    keys = Keys(msgspec.structs.replace(LIBERO, prompt_format="plain"))
    assert "state" in keys.observation(SENT)
    assert "state" not in keys.observation({k: v for k, v in SENT.items() if k != "observation/state"})


def test_own_keys_stay_beside_a_map() -> None:
    keys = Keys(LIBERO, ["image=front"])
    own = {"images": {"image": FRONT, "wrist_image": WRIST}, "state": STATE, "prompt": "x"}
    assert keys.observation(own) == own
    with pytest.raises(ObservationError, match=r"missing \['image'\], not expected \['observation/image'\]"):
        keys.observation(SENT)


def test_parts_of_a_state_that_do_not_join() -> None:
    keys = Keys(LIBERO, ["state=arm,gripper"])
    sent = {"images": {"image": FRONT, "wrist_image": WRIST}, "prompt": "x", "arm": STATE, "gripper": [[1.0]]}
    with pytest.raises(ObservationError, match=r"state: 2 arrays found that do not join"):
        keys.observation(sent)


def test_a_key_that_comes_twice() -> None:
    with pytest.raises(ObservationError, match="one of them twice"):
        Keys(LIBERO).observation(SENT | {"images": {"image": FRONT}, "images/image": FRONT})


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (["image"], r"--map 'image': expected image or wrist_image or state, each once"),
        (["rear=x"], r"--map 'rear=x': expected image or wrist_image or state"),
        (["image=x", "image=y"], r"--map 'image=y': expected .* each once"),
        (["image="], r"--map 'image=': expected"),
        (["state=a,"], r"--map 'state=a,': expected"),
        (["image=a,b"], r"--map 'image=a,b': 2 keys found, one expected for a camera"),
        (["image=x", "wrist_image=x"], r"--map: \['x'\] found for two parts"),
        (["image=images/wrist_image"], r"--map: \['images/wrist_image'\] found for two parts"),
        (["image=state"], r"--map: \['state'\] found for two parts"),
        (["image=prompt"], r"--map: \['prompt'\] found for two parts"),
    ],
)
def test_a_map_that_is_refused(maps: list[str], message: str) -> None:
    with pytest.raises(ObservationError, match=message):
        Keys(LIBERO, maps)
