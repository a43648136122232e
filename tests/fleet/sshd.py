"""An ssh server for one simulated device: its own port on loopback, host key and authorized key."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
LOOPBACK = "127.0.0.1"


class Sshd:
    """Lets the user that runs the tests in, root or not."""

    def __init__(self, folder: Path, operator: Path) -> None:
        """operator: the private key of who may log in."""
        folder.mkdir()
        self.port = _free_port()
        self.known_hosts, self.log, self._config = folder / "known_hosts", folder / "log", folder / "config"
        host_key = new_key(folder / "host_key")
        self.known_hosts.write_text(f"[{LOOPBACK}]:{self.port} {_public(host_key).read_text()}")
        self._config.write_text(
            f"ListenAddress {LOOPBACK}:{self.port}\nHostKey {host_key}\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {_public(operator)}\nStrictModes no\nPermitRootLogin prohibit-password\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        )

    def start(self) -> None:
        """Errors: AssertionError with its log, if it takes no connection within 5 seconds."""
        assert SSHD is not None
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # which a distribution's service makes
        with self.log.open("a") as log:
            self.process = subprocess.Popen([SSHD, "-D", "-e", "-f", self._config], stderr=log)
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex((LOOPBACK, self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def stop(self) -> None:
        """From now on its port refuses."""
        self.process.terminate()
        self.process.wait()


def new_key(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


def end_connections(sockets: Path) -> None:
    """Of clients that keep theirs for a while."""
    for socket_path in sockets.iterdir():
        subprocess.run(["ssh", "-O", "exit", "-S", socket_path, LOOPBACK], capture_output=True, check=False)


def _public(key: Path) -> Path:
    return key.with_name(f"{key.name}.pub")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]
