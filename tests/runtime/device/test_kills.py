"""A robot that loses power, is killed or has a full disk at any moment acts as before, or as it was told to.

Each test prints its row of the table in docs/distribution.md: `pytest -s tests/runtime/device/test_kills.py`.
"""

import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pi05_runtime import load_active
from pi05_runtime.device.pull import verified
from pi05_runtime.device.slots import Slots, read_slots
from pi05_runtime.device.store import State, Store
from pi05_runtime.manifest import read_manifest
from tests.hub.wire import Hub
from tests.pipeline import TARGET
from tests.runtime.bundle_edits import onnx_file
from tests.runtime.device.fates import Runner, runner
from tests.runtime.device.scene import ACTIVE, NEW, PREVIOUS, TESTED, Scene
from tests.runtime.device.stores import REPO

Found = tuple[Slots, dict[str, State]]
PULL = ("pull", f"{REPO}@v{NEW}", "--target", TARGET)
COMMANDS = {
    "pull": PULL,
    "pull what is active": ("pull", f"{REPO}@v{ACTIVE}", "--target", TARGET),
    "verify": ("verify", TESTED),
    "test": ("test", TESTED),
    "activate": ("activate", TESTED),
    "rollback": ("rollback",),
    "gc": ("gc",),
}
NO_SPACE = "No space left on device"
FITS = 1 << 19
"""Bytes of a file."""


@pytest.fixture(scope="module")
def robot() -> Iterator[Runner]:
    with runner() as started:
        yield started


@pytest.fixture
def start(scene: Scene, hub: Hub, tmp_path: Path) -> "Start":
    return Start(scene, tmp_path)


class Start:
    """Puts the robot back to where a command starts, which it names by versions."""

    def __init__(self, scene: Scene, folder: Path) -> None:
        self.scene, self.folder = scene, folder

    def of(self, command: str) -> tuple[Store, list[str]]:
        store = self.scene.copy(self.folder).store
        if command == "test":
            store.write_record(store.record(self.scene.ids[TESTED]).at("verified"))
        return store, [self.scene.ids.get(argument, argument) for argument in COMMANDS[command]]


def found(store: Store) -> Found:
    return read_slots(store), {record.id: record.state for record in store.all_records()}


def files(store: Store) -> set[str]:
    return {path.relative_to(store.root).as_posix() for path in store.root.rglob("*")}


def whole(store: Store) -> bool:
    """The active bundle and the one to roll back to: signature, manifest, every byte, and their self-test."""
    slots = read_slots(store)
    ids = [id for id in (slots.active, slots.previous) if id is not None]
    return len(ids) == 2 and all(verified(store, store.record(id)).state == "tested" for id in ids)


def test_the_commands_do_something(robot: Runner, start: Start, scene: Scene) -> None:
    previous, active, tested = (scene.ids[version] for version in (PREVIOUS, ACTIVE, TESTED))
    after: dict[str, Found] = {}
    for command in COMMANDS:
        store, arguments = start.of(command)
        assert robot.pi05(store.root, *arguments).code == 0
        after[command] = found(store)
    assert after["activate"][0] == Slots(tested, active)
    assert after["rollback"][0] == Slots(previous, active)
    assert after["gc"][1].keys() == {previous, active}
    assert after["test"][1][tested] == "tested"
    assert sorted(after["pull"][1].values()) == ["tested", "tested", "tested", "verified"]
    assert set(after["pull what is active"][1].values()) == {"tested"}


@pytest.mark.parametrize("command", COMMANDS)
def test_killed_before_every_change(robot: Runner, start: Start, command: str) -> None:
    store, arguments = start.of(command)
    old = found(store)
    assert robot.pi05(store.root, *arguments).code == 0
    new, complete = found(store), files(store)
    seen: Counter[str] = Counter()
    for change in range(1, 1000):
        store, arguments = start.of(command)
        code = robot.pi05(store.root, *arguments, fate="killed", at=change).code
        if code == 0:
            break
        assert code == -signal.SIGKILL
        seen[judge(store, old, new)] += 1
        if command != "rollback" or found(store) == old:
            assert robot.pi05(store.root, *arguments).code == 0
        assert found(store) == new and files(store) == complete, change
    assert seen.total() > 0
    load_active(store.root, steps=1).close()
    print(f"\n| `{command}` | before each change | {seen.total()} | {seen['old']} | {seen['new']} |")


@pytest.mark.parametrize(("command", "moments"), [("pull", 20), ("test", 3)])
def test_killed_at_any_moment(robot: Runner, start: Start, command: str, moments: int) -> None:
    """In the middle of a download or a decision, too, where nothing in the store changes its name."""
    store, arguments = start.of(command)
    old, began = found(store), time.monotonic()
    assert robot.pi05(store.root, *arguments).code == 0
    lasts, new, complete = time.monotonic() - began, found(store), files(store)
    seen: Counter[str] = Counter()
    for moment in range(moments):
        store, arguments = start.of(command)
        robot.pi05(store.root, *arguments, fate="killed after seconds", at=lasts * moment / moments)
        seen[judge(store, old, new)] += 1
        assert robot.pi05(store.root, *arguments).code == 0
        assert found(store) == new and files(store) == complete
    print(f"\n| `{command}` | at moments of equal distance | {moments} | {seen['old']} | {seen['new']} |")


@pytest.mark.parametrize("command", ["pull", "verify", "activate", "rollback", "gc"])
def test_a_disk_that_is_full_from_any_change_on(robot: Runner, start: Start, command: str) -> None:
    store, arguments = start.of(command)
    old = found(store)
    assert robot.pi05(store.root, *arguments).code == 0
    new, complete = found(store), files(store)
    refused = 0
    for change in range(1, 1000):
        store, arguments = start.of(command)
        ended = robot.pi05(store.root, *arguments, fate="disk full", at=change)
        if ended.code == 0:
            break
        assert ended.code == 1 and f"{NO_SPACE}: " in ended.output and "free space" in ended.output
        assert judge(store, old, new) == "old"
        assert robot.pi05(store.root, *arguments).code == 0
        assert found(store) == new and files(store) == complete, change
        refused += 1
    assert (refused > 0) == (command not in ("gc", "verify")), "a full disk must let one free it"
    print(f"\n| `{command}` | disk full from each change on | {refused} | {refused} | 0 |")


def test_a_write_that_does_not_fit(robot: Runner, start: Start, hub: Hub) -> None:
    """What has arrived stays, and is not asked for again."""
    store, arguments = start.of("pull")
    old = found(store)
    ended = robot.pi05(store.root, *arguments, fate="files limited", at=FITS)
    assert ended.code == 1 and "File too large" in ended.output
    assert found(store) == old and whole(store)
    (part,) = store.objects.glob("*.part")
    assert part.stat().st_size == FITS
    hub.requests.clear()
    assert robot.pi05(store.root, *arguments).code == 0
    bundle = start.scene.bundle
    weights = read_manifest(bundle).files[onnx_file(bundle, "vision", "weights.bin")]
    assert hub.sent("cdn") == weights.size - FITS


def test_what_has_a_name_is_on_the_disk(robot: Runner, start: Start) -> None:
    """After a loss of power a name may be there without the contents that were not yet synced."""
    store, pull = start.of("pull")
    log = robot.pi05(store.root, *pull, fate="logged").log
    id = next(record.id for record in store.all_records() if record.version == NEW)
    for command in ("test", "activate"):
        ended = robot.pi05(store.root, command, id, fate="logged")
        assert ended.code == 0
        log += ended.log
    assert read_slots(store).active == id
    synced: set[str] = set()
    waiting: dict[str, str] = {}
    for event, *paths in log:
        if event == "fsync":
            synced.add(paths[0])
            waiting.pop(paths[0], None)
        elif event in ("os.mkdir", "os.link", "os.rename"):
            assert event != "os.rename" or paths[0] in synced, (
                f"{paths} renamed before its contents were synced"
            )
            waiting[str(Path(paths[-1]).parent)] = paths[-1]
        if event == "os.rename" and Path(paths[1]) == store.slots:
            assert not waiting.keys() - {str(store.root)}, f"{waiting} not synced before it became active"
    assert not waiting, f"{waiting} not synced at the end"
    assert any(event == "os.link" for event, *_ in log)


def judge(store: Store, old: Found, new: Found) -> str:
    """Whether the store is as before a command or as after it, and whole in either case. Pulled and not yet
    verified counts as before."""
    now, between = found(store), (new[0], {id: old[1].get(id, "pulled") for id in new[1]})
    assert now in (old, between, new)
    assert whole(store)
    return "new" if now == new != old else "old"
