"""What an episode leaves behind: one JSON file, whole or not there, so that a run goes on where it ended.

A folder belongs to the policies that `run.json` names. The files of another bundle under the same name would
be taken for this one's, so each policy is known by the hash of what decides, and another one is refused.
"""

import fcntl
import io
import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from PIL import Image

from pi05_runtime.errors import Pi05Error
from pi05_runtime.staging import write_file
from validate.closed_loop.suites import Suite

RUN = "run.json"
FRAME_MS = 100
QUALITY = 60
NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")

T = TypeVar("T")


class ClosedLoopError(Pi05Error):
    """A closed loop cannot be run as asked, or what it left behind cannot be read."""

    exit_code = 2


class Scene(NamedTuple):
    """One scene of a suite of SUITES."""

    suite: str
    task: str
    number: int


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


class Run(Struct, frozen=True):
    """Whose episodes a folder holds: of every policy in every scene, once it is complete.

    scenes: suite -> task -> scene numbers. simulators: suite -> package -> version. policies: name -> what
    identifies it.
    """

    reference: str | None
    suites: dict[str, Suite]
    scenes: dict[str, dict[str, tuple[int, ...]]]
    simulators: dict[str, dict[str, str]]
    policies: dict[str, dict[str, Any]]


class Store:
    """The folder of a run. Only one command at a time writes to it."""

    def __init__(self, out: Path) -> None:
        self._out = out

    @contextmanager
    def held(self, run: Run) -> Generator[None]:
        """Inside, the folder is this run's. What it has of earlier commands stays, if it is of the same
        policies. Errors: ClosedLoopError."""
        self._out.mkdir(parents=True, exist_ok=True)
        with (self._out / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ClosedLoopError(
                    f"{self._out}: another command writes to it; wait for its end, or name another folder"
                ) from None
            run = self._joined(run)
            write_file(self._out / RUN, msgspec.json.format(msgspec.json.encode(run)) + b"\n")
            yield

    def has(self, scene: Scene, policy: str) -> bool:
        return self._file(scene, policy).exists()

    def read(self, scene: Scene, policy: str) -> Episode:
        """Errors: ClosedLoopError."""
        return _read(self._file(scene, policy), Episode)

    def put(self, episode: Episode, frames: Sequence[NDArray[np.uint8]]) -> None:
        """The film first: an episode that is there is complete."""
        file = self._file(Scene(episode.suite, episode.task, episode.scene), episode.policy)
        if frames and not episode.success:
            episode = msgspec.structs.replace(episode, video=f"{episode.policy}.webp")
            write_file(file.with_name(f"{episode.policy}.webp"), film(frames))
        write_file(file, msgspec.json.encode(episode) + b"\n")

    def _file(self, scene: Scene, policy: str) -> Path:
        return self._out / "episodes" / scene.suite / scene.task / str(scene.number) / f"{policy}.json"

    def _joined(self, run: Run) -> Run:
        if not (self._out / RUN).exists():
            if any(self._out.glob("episodes/*")):
                raise ClosedLoopError(
                    f"{self._out}: episodes found without {RUN}, which says whose they are; name another "
                    "folder"
                )
            return run
        old = read_run(self._out)
        if run.reference != old.reference:
            raise ClosedLoopError(
                f"{self._out}: its divergences are from the reference {old.reference!r}, {run.reference!r} "
                "was asked for; name another folder"
            )
        return Run(
            run.reference,
            self._merged("suite", old.suites, run.suites),
            _united(old.scenes, run.scenes),
            self._merged("simulator of", old.simulators, run.simulators),
            self._merged("policy", old.policies, run.policies),
        )

    def _merged(self, what: str, old: Mapping[str, T], new: Mapping[str, T]) -> dict[str, T]:
        for name in old.keys() & new.keys():
            if old[name] != new[name]:
                raise ClosedLoopError(
                    f"{self._out}: {what} {name!r} is another one here: {difference(old[name], new[name])}; "
                    "give it another name, or name another folder"
                )
        return {**old, **new}


def read_run(out: Path) -> Run:
    """Errors: ClosedLoopError."""
    return _read(out / RUN, Run)


def film(frames: Sequence[NDArray[np.uint8]]) -> bytes:
    """An animated WebP."""
    first, *others = [Image.fromarray(np.ascontiguousarray(frame)) for frame in frames]
    file = io.BytesIO()
    first.save(file, "WEBP", save_all=True, append_images=others, duration=FRAME_MS, loop=0, quality=QUALITY)
    return file.getvalue()


def difference(old: object, new: object) -> str:
    """Of two structs or maps: what is found in one, and expected by the other."""
    found, asked = msgspec.to_builtins(old), msgspec.to_builtins(new)
    keys = [key for key in {**found, **asked} if found.get(key) != asked.get(key)]
    return "; ".join(f"{key} {found.get(key)} found, {asked.get(key)} expected" for key in keys)


def _read(path: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError) as error:
        raise ClosedLoopError(
            f"{path}: {error}; run the closed loop again, without this file if it is damaged"
        ) from None


def _united(
    old: Mapping[str, Mapping[str, Sequence[int]]], new: Mapping[str, Mapping[str, Sequence[int]]]
) -> dict[str, dict[str, tuple[int, ...]]]:
    of = [(suite, task) for scenes in (old, new) for suite, tasks in scenes.items() for task in tasks]
    united: dict[str, dict[str, tuple[int, ...]]] = {}
    for suite, task in of:
        numbers = {n for scenes in (old, new) for n in scenes.get(suite, {}).get(task, ())}
        united.setdefault(suite, {})[task] = tuple(sorted(numbers))
    return united
