"""What an episode leaves behind: one JSON file, whole or not there, so that a run goes on where it ended."""

from msgspec import Struct


class Episode(Struct, frozen=True):
    """One policy in one scene.

    error: what ended it early, a failure like any other. decision_ms: of each decision, round trip included.
    divergence: of each decision, the mean absolute difference of the executed actions to the reference's on
    the very observation and noise, both in the robot's units; the observations are those of the reference's
    own episode, so that all policies are asked the same. None where there is no reference. video: file name,
    of a failure.
    """

    suite: str
    task: str
    scene: int
    policy: str
    success: bool
    steps: int
    error: str | None
    seconds: float
    decision_ms: tuple[float, ...]
    divergence: tuple[float, ...] | None
    video: str | None
