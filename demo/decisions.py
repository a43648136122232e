"""What a policy learns from: decisions of episodes, each with what the expert would do from there.

An expert that is never disturbed shows only its own narrow path, and a policy that copies it is lost one
centimetre beside it. So episodes are driven by something else than the recorded chunks: by the expert and a
slowly changing disturbance of the hand, say.

One file holds one task; each row is one decision: state, chunk of actions, and one WebP picture a camera,
shrunk as openpi's preprocessing does. Both suites' recorders use this, in environments of their own.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HORIZON = 10
MEMORY = 0.8  # how much of the disturbance stays from one step to the next
SIDE = 112  # of the policy's square
QUALITY = 85


@dataclass
class Decisions:
    """Rows of one task; `pictures` in the order of the rows, then of the cameras."""

    episodes: list[int] = field(default_factory=list)
    states: list[NDArray[np.float32]] = field(default_factory=list)
    chunks: list[NDArray[np.float32]] = field(default_factory=list)
    pictures: list[bytes] = field(default_factory=list)

    def extend(self, other: "Decisions") -> None:
        for name, values in vars(self).items():
            values += getattr(other, name)

    def save(self, path: Path, suite: str, cameras: Sequence[str], prompt: str) -> None:
        """`pictures` becomes one array of bytes, cut by the `ends` of the pictures."""
        partial = path.with_suffix(".partial")
        try:
            with partial.open("wb") as file:
                np.savez(
                    file,
                    suite=np.array(suite),
                    cameras=np.array(cameras),
                    prompt=np.array(prompt),
                    episodes=np.array(self.episodes, np.int32),
                    states=np.stack(self.states),
                    chunks=np.stack(self.chunks),
                    pictures=np.frombuffer(b"".join(self.pictures), np.uint8),
                    ends=np.cumsum([len(picture) for picture in self.pictures]),
                )
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def picture(frame: NDArray[np.uint8]) -> bytes:
    """frame: not higher than wide."""
    height, width = frame.shape[:2]
    shrunk = Image.fromarray(frame).resize((SIDE, SIDE * height // width), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    shrunk.save(file, "WEBP", quality=QUALITY)
    return file.getvalue()


def disturbances(seed: int, largest: float, dims: int) -> Iterator[NDArray[np.float64]]:
    """What is added to an action, of which the first three move the hand: noise with a memory, stronger in
    some episodes. largest: standard deviation, in units of the action."""
    rng = np.random.default_rng(seed)
    strength = rng.uniform(0, largest)
    offset = np.zeros(dims)
    while True:
        fresh = strength * np.sqrt(1 - MEMORY**2) * rng.standard_normal(3)
        offset[:3] = MEMORY * offset[:3] + fresh
        yield offset
