"""Staged images against plain statements of both training stacks' resizes.

openpi is stated with PIL on a canvas, LeRobot with torch's interpolate, each as its source has it.
"""

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from pi05_runtime.errors import ObservationError
from pi05_runtime.interface import Convention
from pi05_runtime.preprocess.images import stage_images

SIZE = 224
SHAPES = [
    (480, 640),
    (640, 480),
    (720, 1280),
    (256, 256),
    (224, 224),
    (224, 112),
    (225, 224),
    (37, 100),
    (1, 1),
    (181, 401),
    (1080, 1920),
]
CONVENTIONS: tuple[Convention, Convention] = ("openpi", "lerobot")


def noise(height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def stage(image: npt.ArrayLike, convention: Convention) -> npt.NDArray[np.float32]:
    return stage_images({"base": image}, ["base"], SIZE, convention)[0]


def openpi(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    canvas = Image.fromarray(image)
    if canvas.size != (SIZE, SIZE):
        ratio = max(canvas.width / SIZE, canvas.height / SIZE)
        height, width = int(canvas.height / ratio), int(canvas.width / ratio)
        resized = canvas.resize((width, height), resample=Image.Resampling.BILINEAR)
        canvas = Image.new("RGB", (SIZE, SIZE), 0)
        canvas.paste(resized, (max(0, int((SIZE - width) / 2)), max(0, int((SIZE - height) / 2))))
    return (np.asarray(canvas).astype(np.float32) / 255.0 * 2.0 - 1.0).transpose(2, 0, 1)


def lerobot(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    pixels = torch.tensor(image).permute(2, 0, 1)[None].to(torch.float32) / 255
    if image.shape[:2] != (SIZE, SIZE):
        ratio = max(image.shape[1] / SIZE, image.shape[0] / SIZE)
        height, width = int(image.shape[0] / ratio), int(image.shape[1] / ratio)
        pixels = torch.nn.functional.interpolate(
            pixels, size=(height, width), mode="bilinear", align_corners=False
        ).clamp(0.0, 1.0)
        top, odd_rows = divmod(SIZE - height, 2)
        left, odd_columns = divmod(SIZE - width, 2)
        pixels = torch.nn.functional.pad(pixels, (left, left + odd_columns, top, top + odd_rows), value=0.0)
    return (pixels * 2.0 - 1.0)[0].numpy()


@pytest.mark.parametrize("shape", SHAPES)
def test_openpi_is_pil(shape: tuple[int, int]) -> None:
    image = noise(*shape)
    np.testing.assert_array_equal(stage(image, "openpi"), openpi(image))


@pytest.mark.parametrize("shape", SHAPES)
def test_lerobot_is_torch_interpolate(shape: tuple[int, int]) -> None:
    image = noise(*shape)
    np.testing.assert_allclose(stage(image, "lerobot"), lerobot(image), rtol=0, atol=1e-6)


def test_conventions_differ_when_shrinking() -> None:
    image = noise(480, 640)
    assert np.abs(stage(image, "openpi") - stage(image, "lerobot")).max() > 0.5


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_model_sized_image_is_untouched(convention: Convention) -> None:
    image = noise(SIZE, SIZE)
    expected = (image.astype(np.float32) / np.float32(255) * 2 - 1).transpose(2, 0, 1)
    np.testing.assert_array_equal(stage(image, convention), expected)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_padding_is_black_and_centred(convention: Convention) -> None:
    wide = stage(np.full((223, 446, 3), 255, np.uint8), convention)
    assert (wide[:, :56] == -1).all() and (wide[:, 168:] == -1).all() and (wide[:, 56:168] == 1).all()
    odd = stage(np.full((448, 446, 3), 255, np.uint8), convention)
    assert (odd[:, :, 223] == -1).all() and (odd[:, :, :223] == 1).all()


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_views_follow_the_policy_order(convention: Convention) -> None:
    images = {"wrist": noise(64, 48, 1), "base": noise(480, 640, 2)}
    staged = stage_images(images, ["base", "wrist"], SIZE, convention)
    assert staged.shape == (2, 3, SIZE, SIZE) and staged.dtype == np.float32
    assert staged.flags.c_contiguous and staged.min() >= -1 and staged.max() <= 1
    np.testing.assert_array_equal(staged[0], stage(images["base"], convention))
    np.testing.assert_array_equal(staged[1], stage(images["wrist"], convention))


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_rotated_view_of_an_array(convention: Convention) -> None:
    image = noise(256, 256)[::-1, ::-1]
    np.testing.assert_array_equal(stage(image, convention), stage(image.copy(), convention))


@pytest.mark.parametrize(
    ("given", "missing", "unexpected"),
    [
        (["base"], "['wrist']", "[]"),
        (["base", "wrist", "left"], "[]", "['left']"),
        ([], "['base', 'wrist']", "[]"),
    ],
)
def test_other_cameras_are_refused(given: list[str], missing: str, unexpected: str) -> None:
    images = {name: noise(8, 8) for name in given}
    expected = (
        f"missing {missing}, unexpected {unexpected}; found {given}, expected ['base', 'wrist']; "
        "pass one image under each expected name"
    )
    with pytest.raises(ObservationError, match=re.escape(expected)):
        stage_images(images, ["base", "wrist"], SIZE, "openpi")


@pytest.mark.parametrize(
    ("image", "found", "advice"),
    [
        (np.zeros((1, 8, 8, 3), np.uint8), "uint8 [1, 8, 8, 3]", "without batch or time axes"),
        (np.zeros((8, 8), np.uint8), "uint8 [8, 8]", "rank 3"),
        (np.zeros((3, 8, 9), np.uint8), "uint8 [3, 8, 9]", "x.transpose(1, 2, 0)"),
        (np.zeros((8, 8, 4), np.uint8), "uint8 [8, 8, 4]", "x[..., :3]"),
        (np.zeros((0, 8, 3), np.uint8), "uint8 [0, 8, 3]", "the image is empty"),
        (np.zeros((8, 8, 3), np.float32), "float32 [8, 8, 3]", "(255*x).astype(uint8)"),
        (np.zeros((8, 8, 3), np.int64), "int64 [8, 8, 3]", "8 bits, 0 to 255"),
        (np.zeros((8, 8, 3), np.bool_), "bool [8, 8, 3]", "8 bits, 0 to 255"),
    ],
)
def test_other_images_are_refused(image: npt.NDArray[Any], found: str, advice: str) -> None:
    with pytest.raises(ObservationError, match=re.escape(advice)) as caught:
        stage(image, "openpi")
    assert f"camera 'base': found {found}, expected uint8 [height, width, 3] RGB" in str(caught.value)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_image_too_thin_to_fit_is_refused(convention: Convention) -> None:
    with pytest.raises(
        ObservationError, match=r"camera 'base': found an image of 2 x 1000 pixels, .* 0 x 224"
    ):
        stage(noise(2, 1000), convention)
