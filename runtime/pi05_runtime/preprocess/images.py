"""Camera frames of any size to the float tensor that the vision tower reads.

Both training stacks fit a frame into the model's square without distortion, centre it on black and
scale it to [-1, 1]; they differ in how they shrink, and that changes every pixel. openpi asks PIL
for a bilinear resize, which averages over the source area (antialias) and rounds to uint8. LeRobot
interpolates floats between the nearest two pixels an axis, as torch does by default. The second is
written here in numpy, in torch's float32 arithmetic, so that a robot needs no torch.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from pi05_runtime.errors import ObservationError
from pi05_runtime.interface import Convention


def stage_images(
    images: Mapping[str, npt.ArrayLike], cameras: Sequence[str], size: int, convention: Convention
) -> npt.NDArray[np.float32]:
    """Resize, pad and scale one frame a camera.

    images: uint8 RGB [height, width, 3] under exactly the names in `cameras`.
    cameras: names in the order of the image tokens. size: side of the model's square, pixels.
    Returns float32 [len(cameras), 3, size, size] in [-1, 1], contiguous; the padding is -1.
    Raises ObservationError naming the camera: missing, unexpected, or not such a frame.
    Source: openpi_client `image_tools.resize_with_pad`; LeRobot pi05 `resize_with_pad_torch`.
    """
    resize = _resize_openpi if convention == "openpi" else _resize_lerobot
    staged = np.zeros((len(cameras), 3, size, size), dtype=np.float32)
    for view, camera, frame in zip(staged, cameras, read_frames(images, cameras), strict=True):
        height, width = fit(camera, frame.shape[0], frame.shape[1], size)
        top, left = (size - height) // 2, (size - width) // 2
        view[:, top : top + height, left : left + width] = resize(frame, height, width).transpose(2, 0, 1)
    staged *= 2
    staged -= 1
    return staged


def read_frames(
    images: Mapping[str, npt.ArrayLike], cameras: Sequence[str]
) -> tuple[npt.NDArray[np.uint8], ...]:
    """One frame a camera, in the order of `cameras`, uint8 [height, width, 3] as it is. Errors as
    `stage_images`."""
    _check_names(images, cameras)
    return tuple(_frame(camera, images[camera]) for camera in cameras)


def _check_names(images: Mapping[str, npt.ArrayLike], cameras: Sequence[str]) -> None:
    missing = [camera for camera in cameras if camera not in images]
    unexpected = [camera for camera in images if camera not in cameras]
    if missing or unexpected:
        raise ObservationError(
            f"the cameras do not fit the policy: missing {missing}, unexpected {unexpected}; "
            f"found {list(images)}, expected {list(cameras)}; pass one image under each expected name"
        )


def _frame(camera: str, image: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    try:
        frame = np.asarray(image)
    except (TypeError, ValueError) as error:
        raise ObservationError(
            f"camera {camera!r}: found {type(image).__name__} that is no array ({error}), "
            "expected uint8 [height, width, 3] RGB; pass a numpy array"
        ) from error
    if frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3 and frame.size:
        return frame
    if frame.ndim != 3:
        advice = "pass one frame of rank 3, without batch or time axes"
    elif frame.shape[2] != 3:
        advice = "put the channels last (x.transpose(1, 2, 0)), drop alpha (x[..., :3]), make grey RGB"
    elif frame.size == 0:
        advice = "the image is empty: check that the camera delivers frames"
    elif np.issubdtype(frame.dtype, np.floating):
        advice = "convert values in [0, 1] by (255*x).astype(uint8)"
    else:
        advice = "convert the camera's pixels to 8 bits, 0 to 255"
    raise ObservationError(
        f"camera {camera!r}: found {frame.dtype} {list(frame.shape)}, "
        f"expected uint8 [height, width, 3] RGB; {advice}"
    )


def fit(camera: str, height: int, width: int, size: int) -> tuple[int, int]:
    """(height, width) of a frame in a square of `size`. Errors: ObservationError for one too thin."""
    ratio = max(width / size, height / size)
    fitted = int(height / ratio), int(width / ratio)
    if 0 in fitted:
        raise ObservationError(
            f"camera {camera!r}: found an image of {height} x {width} pixels, which shrinks to "
            f"{fitted[0]} x {fitted[1]}; expected one that fits {size} x {size} with a pixel left on "
            "each side; crop it before passing it"
        )
    return fitted


def _resize_openpi(frame: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.float32]:
    resized = Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float32) / np.float32(255)


def _resize_lerobot(frame: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.float32]:
    unit = frame.astype(np.float32) / np.float32(255)
    return np.clip(_interpolate(_interpolate(unit, 1, width), 0, height), 0, 1)


def _interpolate(image: npt.NDArray[np.float32], axis: int, length: int) -> npt.NDArray[np.float32]:
    """Linear resampling of one axis of [height, width, 3]."""
    low, high, weight = positions(image.shape[axis], length)
    weight = weight.reshape(-1, *(1,) * (2 - axis))
    blend, far = np.take(image, low, axis), np.take(image, high, axis)
    blend *= 1 - weight
    far *= weight
    blend += far
    return blend


def positions(
    source: int, length: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """(lower neighbour, upper neighbour, weight of the upper), each [length]: pixel centres at half-integers.

    A position is scale * (i + 0.5) - 0.5 with a float32 scale and a single rounding, as torch's
    compiled loop has it (a fused multiply-add): float64 holds the product exactly.
    """
    scale = np.float64(np.float32(source) / np.float32(length))
    position = np.maximum((np.arange(length) + 0.5) * scale - 0.5, 0).astype(np.float32)
    low = position.astype(np.intp)
    return low, np.minimum(low + 1, source - 1), (position - low).astype(np.float32)
