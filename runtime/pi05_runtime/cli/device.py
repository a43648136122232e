"""Commands on the bundles that a device keeps: pull, verify, test, activate, roll back, clean up, look."""

import argparse
from collections.abc import Callable
from pathlib import Path

import msgspec

from pi05_runtime import doctor
from pi05_runtime.cli.commands import Commands, add_root
from pi05_runtime.device import slots
from pi05_runtime.device.pull import pull as pull_bundle
from pi05_runtime.device.pull import verified
from pi05_runtime.device.store import Store
from pi05_runtime.device.trial import test as test_bundle
from pi05_runtime.errors import TargetError
from pi05_runtime.manifest import Manifest

AUTO = "auto"


def pull(arguments: argparse.Namespace) -> None:
    """Brings a bundle's files for this device and verifies them."""
    repo, _, revision = arguments.repo.partition("@")
    store: Store = arguments.store

    def choose(manifest: Manifest) -> str:
        if arguments.target != AUTO:
            return arguments.target
        return doctor.choose(doctor.facts(store.root), manifest)

    record = pull_bundle(store, repo, revision or "main", choose, arguments.offline)
    if arguments.json:
        _print_json(record)
        return
    print(f"{record.id}  {record.name} {record.version} for {record.target}, commit {record.commit}")


def verify(arguments: argparse.Namespace) -> None:
    """Checks signature and every file of a bundle again."""
    store: Store = arguments.store
    with store.working():
        record = verified(store, store.record(arguments.id))
    print(f"{record.id}  signature, manifest and files are intact")


def test(arguments: argparse.Namespace) -> None:
    """The golden sample through the real engines, in a process of its own; needed before `activate`."""
    report = test_bundle(arguments.store, arguments.id, arguments.minutes)
    for r in report.golden:
        print(f"{r.steps:>3} steps  cosine {r.cosine:.6f} >= {r.threshold}")
    found = report.latency
    print(f"median {found.median_ms:.1f} ms, p99 {found.p99_ms:.1f} ms at {found.steps} steps")


def activate(arguments: argparse.Namespace) -> None:
    """Makes a tested bundle the active one."""
    _print_slots(slots.activate(arguments.store, arguments.id))


def rollback(arguments: argparse.Namespace) -> None:
    """Makes the previous bundle the active one again."""
    _print_slots(slots.rollback(arguments.store))


def gc(arguments: argparse.Namespace) -> None:
    """Deletes all but the active and the previous bundle."""
    print(f"{slots.gc(arguments.store) / 1e6:.1f} MB freed")


def status(arguments: argparse.Namespace) -> None:
    """What this device has, and what is active."""
    found = slots.status(arguments.store)
    if arguments.json:
        _print_json(found)
        return
    marks = {found.slots.active: "active", found.slots.previous: "previous"}
    for r in found.bundles:
        print(
            f"{r.id}  {marks.get(r.id, r.state):<9} {r.name} {r.version} {r.target} {r.repo}@{r.commit[:12]}"
        )


def examine(arguments: argparse.Namespace) -> None:
    """What this device is, and which targets it can run. Errors: TargetError if there is none."""
    if not doctor.report(arguments.bundle, arguments.store.root, arguments.json):
        raise TargetError("no target runs on this device, for the reasons above")


def add_commands(commands: Commands) -> None:
    def add(name: str, command: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        add_root(sub)
        sub.set_defaults(command=command)
        return sub

    sub = add("pull", pull, "bring a bundle for this device from the Hub, and verify it")
    sub.add_argument("repo", metavar="OWNER/NAME[@REVISION]", help="branch, tag or commit; main if absent")
    sub.add_argument("--target", default=AUTO, help="auto: what the doctor accepts")
    sub.add_argument("--offline", action="store_true", help="what an earlier pull of this revision brought")
    sub.add_argument("--json", action="store_true", help="the bundle's record as JSON")
    for name, command, text in (
        ("verify", verify, "check signature and files of a pulled bundle again"),
        ("test", test, "self-test a verified bundle in a process of its own"),
        ("activate", activate, "make a tested bundle the active one"),
    ):
        sub = add(name, command, text)
        sub.add_argument("id", help="of `pi05 status`")
        if command is test:
            sub.add_argument("--minutes", type=float, default=10, help="time limit")
    add("rollback", rollback, "make the previous bundle the active one")
    add("gc", gc, "delete all but the active and the previous bundle")
    sub = add("status", status, "show this device's bundles")
    sub.add_argument("--json", action="store_true", help="as JSON")
    sub = add("doctor", examine, "say what this device is and which targets it can run")
    sub.add_argument("bundle", type=Path, nargs="?", help="bundle folder; all known targets if absent")
    sub.add_argument("--json", action="store_true", help="as JSON")


def _print_json(value: msgspec.Struct) -> None:
    print(msgspec.json.format(msgspec.json.encode(value)).decode())


def _print_slots(found: slots.Slots) -> None:
    print(f"active {found.active}, previous {found.previous or 'none'}")
