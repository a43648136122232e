"""Roll-outs to simulated fleets: waves, halts, every fate that a device can have, and what is reported."""

import os
import signal
import subprocess
import time
from pathlib import Path
from shutil import which
from zipfile import ZipFile

import pytest

from pi05_runtime.device.slots import Slots
from tests.fleet.conftest import BAD, FALSE, NEW, OLD, MakeFleet, Releases
from tests.fleet.devices import Device
from tests.fleet.fleet import PI05, PLAYBOOK, environment
from tests.fleet.sshd import SSHD
from tests.runtime.device.stores import REPO, write_keys

pytestmark = pytest.mark.skipif(
    not which("ssh"), reason="no ssh on this machine: apt-get install openssh-client"
)


def test_syntax(tmp_path: Path) -> None:
    inventory = PLAYBOOK.with_name("inventory.example.yml")
    command = ["ansible-playbook", "--syntax-check", "-i", inventory, PLAYBOOK]
    subprocess.run(command, env=environment(tmp_path), check=True)


def test_a_new_fleet_whose_run_is_killed_and_run_again(make_fleet: MakeFleet, releases: Releases) -> None:
    """Twelve devices without a bundle. The kill is in the second wave, after its first activation."""
    fleet = make_fleet(12)
    for device in fleet.devices:
        device.clear(releases.key)
    for device in fleet.devices[4:]:
        device.has_no_program()
    run = fleet.begin(OLD)
    while not any(device.slots.active for device in fleet.devices[1:4]):
        assert run.poll() is None, run.communicate()[0]
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()
    active = [device.slots.active for device in fleet.devices]
    assert active[0] == releases.ids[OLD] and set(active) == {None, releases.ids[OLD]}
    assert set(active[4:]) == {None}, "of the third wave"

    again = fleet.roll_out(OLD)
    assert again.code == 0, again.output
    assert set(again.states[name] for name in again.states) <= {"updated", "unchanged"}
    assert [row["wave"] for row in again.report["devices"]] == [1, *[2] * 3, *[3] * 8]
    for device in fleet.devices:
        assert device.slots.active == releases.ids[OLD] and device.acts()

    third = fleet.roll_out(OLD)
    assert third.code == 0 and set(third.changed.values()) == {0}, third.output
    assert set(third.states.values()) == {"unchanged"} and len(third.states) == 12


def test_a_version_that_fails_its_self_test_ends_at_the_canary(
    make_fleet: MakeFleet, releases: Releases
) -> None:
    fleet = make_fleet(12)
    run = fleet.roll_out(BAD)
    assert run.code == 2
    canary, *others = fleet.devices
    row = run.row(canary)
    assert (row["state"], row["is"]["id"]) == ("failed", releases.ids[OLD])
    assert row["message"].startswith("error: self-test of cpu-ort failed")
    assert run.report["halted"] == "1 of 1 devices of wave 1 failed (robot01), at most 0 % may"
    assert {run.states[device.name] for device in others} == {"not reached"}
    for device in fleet.devices:
        assert device.slots == Slots(releases.ids[OLD]) and device.acts()
    assert all(
        device.store.bundle(releases.ids[BAD]).exists() == (device is canary) for device in fleet.devices
    )


def test_every_fate_of_a_device(make_fleet: MakeFleet, releases: Releases) -> None:
    """One of each, in a run that may go on whatever happens, and what is then reported of it."""
    fleet = make_fleet(13)
    canary, offline, full, good, broken, fixed, indiscreet, busy, sick, cut_off, cut_off_sick, *others = (
        fleet.devices
    )
    first, first_sick = others
    old, new = releases.ids[OLD], releases.ids[NEW]
    offline.disconnect()
    broken.break_library(releases.environment)
    busy.busy.touch()
    fixed.variables["pi05_rebuild"] = True
    indiscreet.variables["pi05_keys"] = [str(releases.private_key)]
    for device in (cut_off, cut_off_sick):
        device.give(releases.new)
        device.cut_off()
    for device in (first, first_sick):
        device.clear(releases.key)
    for device in (sick, cut_off_sick, first_sick):
        device.sicken(new)
    with full.full_disk(PI05) as refusal:
        run = fleet.roll_out(NEW, pi05_max_fail_percentage=100)
        found = {device: (device.slots, device.acts()) for device in fleet.devices}
    assert run.code == 2

    def expect(
        device: Device, state: str, now: tuple[Slots, bool], versions: list[str | None], says: str = ""
    ) -> None:
        row = run.row(device)
        assert (row["state"], found[device]) == (state, now), row
        assert [row[name] and row[name]["version"] for name in ("was", "is")] == versions
        assert says in row["message"] if says else row["message"] == ""

    for device in (canary, good, cut_off):
        expect(device, "updated", (Slots(new, old), True), ["0.1.0", "0.2.0"])
    expect(first, "updated", (Slots(new), True), [None, "0.2.0"])
    expect(offline, "offline", (Slots(old), True), [None, None], "Connection refused")
    unchanged = (Slots(old), True), ["0.1.0", "0.1.0"]
    expect(full, "failed", *unchanged, refusal)
    expect(broken, "failed", *unchanged, "error: this target needs onnxruntime, which does not import here")
    expect(fixed, "failed", *unchanged, "error: cpu-ort has no engines that a device can rebuild")
    expect(indiscreet, "failed", *unchanged, "release.pem found, a public key in a file *.pem expected")
    expect(busy, "busy", *unchanged, f"test ! -e {busy.busy}, exit code 1")
    assert busy.store.record(new).state == "verified", "it has the files already"
    for device in (sick, cut_off_sick):
        expect(device, "failed", (Slots(old, new), True), ["0.1.0", "0.1.0"], "exit code 1")
    expect(first_sick, "stuck", (Slots(new), False), [None, "0.2.0"], "one to go back to expected")
    assert not first_sick.running.exists()
    table = next(fleet.reports.glob("*.md")).read_text()
    assert (
        "4 updated" in table
        and "| robot02 | 2 |  |  | offline |" in table
        and f"| none | 0.2.0 ({new[:8]}) | updated |" in table
    )


def test_a_halt_leaves_its_wave_as_it_was_and_brings_back_the_others_if_asked(
    make_fleet: MakeFleet, releases: Releases
) -> None:
    fleet = make_fleet(5)
    fleet.waves = [1, 2, "100%"]
    updated, broken, beside, *later = fleet.devices
    broken.break_library(releases.environment)
    run = fleet.roll_out(NEW, pi05_bring_back=True)
    assert run.code == 2
    assert run.report["halted"] == "1 of 2 devices of wave 2 failed (robot02), at most 0 % may"
    states = [run.states[device.name] for device in fleet.devices]
    assert states == ["brought back", "failed", "halted", "not reached", "not reached"]
    assert updated.slots == Slots(releases.ids[OLD], releases.ids[NEW])
    for device in (broken, beside, *later):
        assert device.slots == Slots(releases.ids[OLD])
    assert all(device.acts() for device in fleet.devices)


def test_a_wave_that_shows_nothing_is_the_last(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(3)
    fleet.devices[0].busy.touch()
    run = fleet.roll_out(NEW)
    assert run.code == 2 and list(run.states.values()) == ["busy", "not reached", "not reached"]
    assert run.report["halted"].startswith("no device of wave 1 runs v0.2.0")


def test_check_mode_tells_and_changes_nothing(make_fleet: MakeFleet, releases: Releases) -> None:
    fleet = make_fleet(2)
    fleet.devices[1].give(releases.new)
    before = [device.files() for device in fleet.devices]
    run = fleet.roll_out(NEW, "--check")
    assert run.code == 0 and list(run.changed.values()) == [1, 0], run.output
    assert "0.1.0 to v0.2.0: pull, test, activate" in run.output and "there already" in run.output
    assert [device.files() for device in fleet.devices] == before and run.report == {}


@pytest.mark.parametrize(
    ("repo", "revision", "message"),
    [
        (
            REPO,
            "main",
            "tags ['v0.1.0', 'v0.2.0', 'v0.3.0', 'v0.4.0'] found for acme/demo, a tag main expected",
        ),
        ("acme/none", NEW, "status 404 found for acme/none"),
    ],
)
def test_only_a_tag_or_a_commit_is_rolled_out(
    make_fleet: MakeFleet, repo: str, revision: str, message: str
) -> None:
    run = make_fleet(1).roll_out(revision, pi05_repo=repo)
    assert run.code == 2 and message in " ".join(run.output.split())
    assert run.report == {}


def test_a_tag_of_another_version_is_refused(make_fleet: MakeFleet, releases: Releases) -> None:
    fleet = make_fleet(1)
    run = fleet.roll_out(FALSE)
    row = run.row(fleet.devices[0])
    assert row["state"] == "failed" and "version 0.2.0 found under the tag v0.4.0" in row["message"]
    assert fleet.devices[0].slots == Slots(releases.ids[OLD])


def test_back_to_an_earlier_version_and_keys(make_fleet: MakeFleet, releases: Releases) -> None:
    """What was tested is not tested again; and only a device that stays where it is loses keys."""
    fleet = make_fleet(2)
    done, switched = fleet.devices
    switched.give(releases.new)
    for device in fleet.devices:
        write_keys(device.store.keys, "retired")
    run = fleet.roll_out(OLD, pi05_keys=[str(releases.key)], pi05_remove_other_keys=True)
    assert run.code == 0 and list(run.states.values()) == ["unchanged", "updated"], run.output
    assert "0.2.0 to v0.1.0: activate" in run.output
    assert switched.slots == Slots(releases.ids[OLD], releases.ids[NEW])
    assert {path.name for path in switched.store.keys.iterdir()} == {"release.pem", "retired.pem"}
    assert [path.name for path in done.store.keys.iterdir()] == ["release.pem"]


def test_the_runtime_is_installed_once(make_fleet: MakeFleet, tmp_path: Path) -> None:
    """From a wheel that leads to the runtime which is being tested, so that no package index is needed."""
    wheel = tmp_path / "pi05_runtime-9-py3-none-any.whl"
    about = "Name: pi05-runtime\nVersion: 9\n"
    with ZipFile(wheel, "w") as archive:
        archive.writestr(
            "stand_in.py", f"import os, sys\n\ndef main():\n    os.execv({str(PI05)!r}, sys.argv)\n"
        )
        for name, text in (
            ("METADATA", f"Metadata-Version: 2.1\n{about}"),
            ("WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
            ("entry_points.txt", "[console_scripts]\npi05 = stand_in:main\n"),
            ("RECORD", ""),
        ):
            archive.writestr(f"pi05_runtime-9.dist-info/{name}", text)
    fleet = make_fleet(1)
    del fleet.variables["pi05_command"]
    fleet.variables["pi05_environment"] = {"PIP_NO_INDEX": "1"}
    for changes in (3, 0):
        run = fleet.roll_out(OLD, pi05_wheel=str(wheel), pi05_venv=str(tmp_path / "venv"))
        assert run.code == 0 and run.changed == {"robot01": changes}, run.output
    assert run.states == {"robot01": "unchanged"}


@pytest.mark.skipif(SSHD is None, reason="no sshd on this machine: apt-get install openssh-server")
def test_a_device_that_vanishes_during_its_update_is_finished_later(
    make_fleet: MakeFleet, releases: Releases
) -> None:
    fleet = make_fleet(2)
    device = fleet.devices[1]
    device.vanish_when_stopped()
    run = fleet.roll_out(NEW, "--limit", device.name)
    assert run.code == 2 and run.states == {device.name: "stuck"}, run.output
    assert "Connection refused" in run.row(device)["message"]
    assert device.slots == Slots(releases.ids[OLD]) and device.note.exists()
    assert device.sshd is not None and "Accepted publickey" in device.sshd.log.read_text()
    device.sshd.start()
    device.variables["pi05_stop_command"] = "true"
    run = fleet.roll_out(NEW, "--limit", device.name)
    assert run.code == 0 and run.states == {device.name: "updated"}, run.output
    assert device.slots.active == releases.ids[NEW] and device.acts()
