"""Simulated robots: each a store of its own, a program that is to act on the active bundle, and a way in."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from pi05_runtime.device.slots import Slots, read_slots
from pi05_runtime.device.store import Store
from tests.fleet.sshd import LOOPBACK, Sshd

SMALL_DISK = "size=32m"
"""Less than what a pull leaves free."""


class Device:
    """Its program is the file `running`, a copy of the slots that it was started with. busy: exists while the
    robot works. sick: names the bundle that it does not act with."""

    def __init__(self, folder: Path, sshd: Sshd | None) -> None:
        self.name, self.folder, self.sshd, self.store = folder.name, folder, sshd, Store(folder / "store")
        self.running, self.sick, self.busy = folder / "running", folder / "sick", folder / "busy"
        self.note = self.store.root / "roll_out.json"
        slots = self.store.slots
        self.variables: dict[str, Any] = {
            "pi05_root": str(self.store.root),
            "pi05_ready_command": f"test ! -e {self.busy}",
            "pi05_stop_command": f"rm -f {self.running}",
            "pi05_start_command": f"cp {slots} {self.running}",
            "pi05_health_command": f"cmp {slots} {self.running} && ! grep -sf {self.sick} {slots}",
            "pi05_health_seconds": 0,
            "ansible_remote_tmp": str(folder / "tmp"),
        }
        if sshd is None:
            self.variables["ansible_connection"] = "local"
        else:
            known = f"-o UserKnownHostsFile={sshd.known_hosts}"
            self.variables |= {"ansible_host": LOOPBACK, "ansible_port": sshd.port}
            self.variables["ansible_ssh_common_args"] = known

    @property
    def slots(self) -> Slots:
        return read_slots(self.store)

    def has_no_program(self) -> None:
        """One that loads what is active whenever it is switched on."""
        for command in ("ready", "stop", "start", "health"):
            del self.variables[f"pi05_{command}_command"]

    def acts(self) -> bool:
        """Whether its program, if any, was started with what is active, and no update is under way."""
        if "pi05_start_command" not in self.variables:
            return self.slots.active is not None
        started = self.running.read_bytes() if self.running.exists() else b""
        return started == self.store.slots.read_bytes() and not self.note.exists()

    def files(self) -> dict[Path, int]:
        """All that it has, and when each was last changed."""
        return {path: path.stat().st_mtime_ns for path in (self.running, *self.store.root.rglob("*"))}

    def clear(self, key: Path) -> None:
        """As it comes from the factory; the roll-out is to bring the key."""
        shutil.rmtree(self.store.root)
        self.running.unlink()
        self.variables["pi05_keys"] = [str(key)]

    def give(self, store: Store) -> None:
        """What another device has, and its program running."""
        self.store.root.mkdir(exist_ok=True)
        subprocess.run(["cp", "-a", f"{store.root}/.", self.store.root], check=True)
        shutil.copy(store.slots, self.running)

    def sicken(self, id: str) -> None:
        self.sick.write_text(f'"active":"{id}"')

    def cut_off(self) -> None:
        """Leaves it as a run does that is killed between activation and start."""
        assert self.slots.active and self.slots.previous
        was, commit = self.store.record(self.slots.previous), self.store.record(self.slots.active).commit
        self.note.write_text(json.dumps({"was": msgspec.to_builtins(was), "commit": commit}))
        self.running.unlink()

    def disconnect(self) -> None:
        """Its port refuses."""
        if self.sshd is not None:
            self.sshd.stop()
        else:
            self.variables |= {"ansible_connection": "ssh", "ansible_host": LOOPBACK, "ansible_port": 1}

    def vanish_when_stopped(self) -> None:
        """The connection after the one that stops its program is refused."""
        assert self.sshd is not None
        self.variables["pi05_stop_command"] += f" && kill {self.sshd.process.pid}"
        self.variables["ansible_ssh_common_args"] += " -o ControlMaster=no -o ControlPath=none"

    def break_library(self, environment: dict[str, str]) -> None:
        """An installation that somebody damaged: it pulls, and no engine loads."""
        package = self.folder / "broken" / "onnxruntime"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("raise ImportError('libonnxruntime.so: file too short')")
        self.variables["pi05_environment"] = environment | {"PYTHONPATH": str(package.parent)}
        self.variables["pi05_target"] = "cpu-ort"

    @contextmanager
    def full_disk(self, command: Path) -> Iterator[str]:
        """No room for a bundle, while the block lasts; yields how `command`, its pi05, is going to say so.

        A small file system where one may be mounted, otherwise a limit on the size of every file."""
        kept, root = self.folder / "kept", self.store.root
        root.rename(kept)
        root.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", SMALL_DISK, "tmpfs", root], check=False)
        self.give(Store(kept))
        if mounted.returncode:
            limited = self.folder / "pi05"
            limited.write_text(f'#!/bin/sh\nulimit -f 100\nexec {command} "$@"\n')
            limited.chmod(0o755)
            self.variables["pi05_command"] = str(limited)
            yield "File too large"
            return
        try:
            yield "MB expected; run `pi05 gc`, or free some space"
        finally:
            subprocess.run(["umount", "--lazy", root], check=True)
