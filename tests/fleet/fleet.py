"""The operator's side of a simulated fleet: an inventory, `ansible-playbook`, and what it reported."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fleet.devices import Device
from tests.pipeline import ROOT

PI05 = Path(sys.executable).with_name("pi05")
FOLDER = ROOT / "fleet"
PLAYBOOK = FOLDER / "roll_out.yml"
RECAP = re.compile(r"^(\S+) +: ok=\d+ +changed=(\d+) ", re.MULTILINE)


@dataclass(frozen=True)
class Run:
    """A finished run. changed: device -> how many tasks changed it. report: empty if there is none."""

    code: int
    output: str
    changed: dict[str, int]
    report: dict[str, Any]

    @property
    def states(self) -> dict[str, str]:
        return {row["device"]: row["state"] for row in self.report["devices"]}

    def row(self, device: Device) -> dict[str, Any]:
        return next(row for row in self.report["devices"] if row["device"] == device.name)


class Fleet:
    """devices: in the order of the waves. variables: what all of them share."""

    def __init__(self, folder: Path, devices: list[Device], variables: dict[str, Any], ssh: Path) -> None:
        """ssh: a folder with a short name, for the sockets of connections that are kept."""
        self.folder, self.devices, self.variables, self.ssh = folder, devices, variables, ssh
        self.reports = folder / "reports"
        self.waves: list[int | str] = [1, "25%", "100%"]

    def roll_out(self, revision: str, *options: str, **settings: Any) -> Run:
        """Runs the playbook to its end."""
        before = set(self.reports.glob("*.json"))
        process = self.begin(revision, *options, **settings)
        output, _ = process.communicate()
        written = set(self.reports.glob("*.json")) - before
        report = json.loads(written.pop().read_text()) if written else {}
        changed = {name: int(count) for name, count in RECAP.findall(output)}
        return Run(process.returncode, output, changed, report)

    def begin(self, revision: str, *options: str, **settings: Any) -> subprocess.Popen[str]:
        """Starts the playbook in a process group of its own."""
        hosts = {device.name: device.variables for device in self.devices}
        inventory = self.folder / "inventory.yml"
        inventory.write_text(json.dumps({"robots": {"hosts": hosts, "vars": self.variables}}))
        settings |= {"pi05_revision": revision, "pi05_waves": self.waves}
        return subprocess.Popen(
            ["ansible-playbook", "-i", inventory, PLAYBOOK, "-e", json.dumps(settings), *options],
            env=environment(self.folder) | {"ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.ssh)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def environment(folder: Path) -> dict[str, str]:
    """An operator's, who has nothing of Ansible's in a home folder."""
    return os.environ | {
        "PATH": f"{PI05.parent}:{os.environ['PATH']}",
        "LC_ALL": "C.UTF-8",
        "ANSIBLE_CONFIG": str(FOLDER / "ansible.cfg"),
        "ANSIBLE_HOME": str(folder / "ansible"),
        "ANSIBLE_FORKS": "4",
        "ANSIBLE_NOCOLOR": "1",
    }
