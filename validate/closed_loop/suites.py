"""What is run: the tasks, scenes and budgets of each suite, as its authors evaluate policies on it."""

from msgspec import Struct


class Suite(Struct, frozen=True):
    """simulator: a module of `simulators`. episodes: scenes a task, numbered from 0. max_steps: control steps
    an episode may take. executed: actions of a chunk that are acted before the next decision."""

    simulator: str
    tasks: tuple[str, ...]
    episodes: int
    max_steps: int
    executed: int


SUITES: dict[str, Suite] = {}
