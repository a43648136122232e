"""Frames staged by the kernel, against what the CPU stages: PIL's pixels and torch's."""

import numpy as np
import pytest
import torch

from export.kernels.resize import resize
from pi05_runtime.interface import Convention
from pi05_runtime.preprocess.images import stage_images
from pi05_runtime.preprocess.resampling import resampling

SIZE = 56


def staged(frame: np.ndarray, convention: Convention) -> torch.Tensor:
    height, width, _ = frame.shape
    tables = resampling("camera", height, width, SIZE, convention)
    out = torch.empty(3, SIZE, SIZE)
    rows, columns = tables.rows, tables.columns
    operands = [torch.tensor(a) for axis in (columns, rows) for a in (axis.starts, axis.weights)]
    resize[(SIZE, 3)](
        torch.tensor(frame), *operands, out, height, width, tables.top, tables.left,
        rows.outputs, columns.outputs, columns.taps, rows.taps, SIZE, 64, convention == "openpi",
    )  # fmt: skip
    return out.cpu()


@pytest.mark.parametrize("convention", ["openpi", "lerobot"])
@pytest.mark.parametrize(
    "shape", [(56, 56), (120, 160), (57, 200), (160, 120), (20, 30), (56, 40), (1, 56), (113, 112)]
)
def test_every_pixel(shape: tuple[int, int], convention: Convention) -> None:
    frame = np.random.default_rng(sum(shape)).integers(0, 256, (*shape, 3), np.uint8)
    frame[: shape[0] // 2, : shape[1] // 2] = 255 * (np.arange(shape[1] // 2) % 2)[None, :, None]
    expected = stage_images({"camera": frame}, ["camera"], SIZE, convention)[0]
    found = staged(frame, convention).numpy()
    if convention == "openpi":
        assert np.array_equal(found, expected)
    else:
        np.testing.assert_allclose(found, expected, rtol=0, atol=3e-7)


def test_a_tall_frame_is_off_by_one_at_most() -> None:
    """Pillow 13 resamples columns first where a frame is much taller than wide, and rounds in between."""
    frame = np.random.default_rng(7).integers(0, 256, (200, 57, 3), np.uint8)
    expected = stage_images({"camera": frame}, ["camera"], SIZE, "openpi")[0]
    assert np.abs(staged(frame, "openpi").numpy() - expected).max() * 127.5 < 1.001
