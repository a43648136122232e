"""What runs in a simulator's own process, under the Python of the simulator's own environment.

Simulators pin libraries that nothing else wants, so nothing here imports what such an environment may lack
(torch, msgspec), nor anything else of the project. Each module has a class `Simulator` as below, made once
for each suite and task of a process, and `PACKAGES`, the distributions whose versions decide what is seen.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Observation = dict[str, NDArray[Any] | str]
"""Under the keys of openpi's client of this robot: uint8 images [height, width, 3], float32 state, prompt."""


class Outcome(NamedTuple):
    """What a chunk of actions led to.

    observation: for the next decision; None after success. steps: control steps of this chunk. frames: for a
    film of the episode, uint8 [height, width, 3], from before the chunk's first step on; the observation's
    own image is enough."""

    observation: Observation | None
    success: bool
    steps: int
    frames: list[NDArray[np.uint8]]


class Simulator(Protocol):
    """One suite and task. What an environment lacks (assets, a GL driver) is noticed when it is made: from
    then on an exception counts as a failed episode."""

    def __init__(self, suite: str, task: str) -> None: ...

    @staticmethod
    def prompts(suite: str) -> dict[str, str]:
        """Task -> its prompt, for every task of the suite; asked without making a simulator."""
        ...

    def reset(self, scene: int) -> Observation:
        """The same scene whatever ran before it, bit for bit: policies are compared in it."""
        ...

    def execute(self, actions: NDArray[np.float32]) -> Outcome:
        """Acts [n, action dims] one after another, all or until success. The budget of the episode is the
        caller's affair. Images that nobody sees need no rendering."""
        ...

    def expert(self) -> NDArray[np.float32]:
        """What the scripted expert does next, [n, action dims], from privileged state; the scene stays as it
        was. NotImplementedError if there is none."""
        ...

    def close(self) -> None: ...
