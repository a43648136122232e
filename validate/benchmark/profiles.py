"""The shapes that are measured at full size, each with a name that its figures never appear without."""

from dataclasses import dataclass

from pi05_runtime.geometry import Geometry


@dataclass(frozen=True)
class Profile:
    """views: cameras, each of them live. prompt: the prompt's bucket, filled. A prefix is all image tokens
    and the prompt."""

    views: int
    prompt: int
    horizon: int

    def prefix(self, geometry: Geometry) -> int:
        return self.views * geometry.vision.tokens + self.prompt


PROFILES = {
    "A10": Profile(views=3, prompt=200, horizon=10),
    "A50": Profile(views=3, prompt=200, horizon=50),
    "B": Profile(views=3, prompt=208, horizon=10),
    "C": Profile(views=2, prompt=20, horizon=10),
}
STEPS = (1, 2, 3, 5, 10)
BUNDLE = "bundle"
"""The profile of a bundle that somebody exported: whatever it has."""
