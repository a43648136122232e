"""A process that a run starts for itself: its last words are kept, and it does not outlive the run."""

import subprocess
import tempfile
from contextlib import suppress
from typing import Any

LAST_LINES = 5


class Process:
    """What it writes to standard error goes to a file without a name."""

    def __init__(self, command: tuple[str, ...], **how: Any) -> None:
        """how: what else subprocess.Popen is told. Errors: OSError if it cannot be started."""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self.popen = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=self._log, **how)
        except BaseException:
            self._log.close()
            raise

    def last_words(self) -> str:
        """Of a process that has ended, or is about to: how, and what it said before."""
        with suppress(subprocess.TimeoutExpired):
            self.popen.wait(10)
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").splitlines()
        return " | ".join([f"status {self.popen.returncode}", *lines[-LAST_LINES:]])

    def kill(self) -> None:
        """From any thread."""
        self.popen.kill()

    def close(self) -> None:
        self.popen.kill()
        self.popen.communicate()
        self._log.close()
