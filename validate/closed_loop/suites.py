"""What is run: the tasks, scenes and budgets of each suite, as its authors evaluate policies on it."""

from msgspec import Struct


class Suite(Struct, frozen=True):
    """simulator: a module of `simulators`. episodes: scenes a task, numbered from `first_scene`. max_steps:
    control steps an episode may take. executed: actions of a chunk that are acted before the next
    decision."""

    simulator: str
    tasks: tuple[str, ...]
    episodes: int
    max_steps: int
    executed: int
    first_scene: int = 0


SUITES: dict[str, Suite] = {
    # The seeds of the demo's observations and demonstrations are below 50000.
    "metaworld": Suite(
        simulator="metaworld",
        tasks=("drawer-open-v3", "button-press-topdown-v3", "reach-v3", "push-v3"),
        episodes=50,
        max_steps=200,
        executed=5,
        first_scene=50_000,
    ),
    # The scenes are LIBERO's initial states, the budgets those of openpi's examples/libero.
    **{
        f"libero_{name}": Suite(
            simulator="libero",
            tasks=tuple(map(str, range(tasks))),
            episodes=50,
            max_steps=max_steps,
            executed=5,
        )
        for name, tasks, max_steps in (
            ("spatial", 10, 220),
            ("object", 10, 280),
            ("goal", 10, 300),
            ("10", 10, 520),
            ("90", 90, 400),
        )
    },
}
