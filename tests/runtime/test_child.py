"""Processes of the runtime's own: the answer, or what became of them, and nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from pi05_runtime.child import Fault, run_child

NUMBER: msgspec.json.Decoder[int] = msgspec.json.Decoder(int)
Ask = Callable[..., int | Fault]


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Runs a module whose `answer(request)` has the given body, with the request 20."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def run(body: str, minutes: float = 1) -> int | Fault:
        (tmp_path / "answerer.py").write_text(
            "import os, subprocess, sys, time\nfrom pi05_runtime.child import serve\n"
            f"def answer(request):\n    {body}\nserve(int, answer)\n"
        )
        return run_child("answerer", 20, NUMBER, minutes, quiet=True)

    return run


def gone(pid: int) -> bool:
    """Whether a process ends within ten seconds; one that nobody waits for yet has ended too."""
    for _ in range(200):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return request + 1", 21),
        ("print('noise'); os.write(1, b'noise'); return request", 20),
        ("return 'many'", "cannot be read"),
        ("os._exit(0)", "cannot be read"),
        ("os._exit(3)", "exit with status 3"),
        ("raise ValueError", "exit with status 1"),
        ("os.kill(os.getpid(), 11)", "exit by signal 11"),
    ],
)
def test_answers_and_faults(ask: Ask, body: str, expected: int | str) -> None:
    found = ask(body)
    assert (
        expected in found.text
        if isinstance(found, Fault) and isinstance(expected, str)
        else found == expected
    )


def test_a_hang_ends_with_all_that_it_started(ask: Ask, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    sleeper = "subprocess.Popen(['sleep', '600'])"
    found = ask(f"open({str(pid)!r}, 'w').write(str({sleeper}.pid)); time.sleep(600)", minutes=0.05)
    assert found == Fault("time limit of 0.05 minutes")
    assert gone(int(pid.read_text()))


def test_an_unknown_module_is_a_fault() -> None:
    assert run_child("pi05_runtime.none", 1, NUMBER, 1, quiet=True) == Fault("exit with status 1")


def test_a_killed_asker_takes_its_child_along(ask: Ask, tmp_path: Path) -> None:
    ask("return 0")  # writes the module, which is then replaced by one that hangs
    pid = tmp_path / "pid"
    (tmp_path / "answerer.py").write_text(
        "import os, time\nfrom pathlib import Path\nfrom pi05_runtime.child import serve\n"
        f"def answer(request):\n    Path({str(pid)!r}).write_text(str(os.getpid())); time.sleep(600)\n"
        "serve(int, answer)\n"
    )
    program = (
        "import msgspec; from pi05_runtime.child import run_child; "
        "run_child('answerer', 1, msgspec.json.Decoder(int), 10, quiet=True)"
    )
    asker = subprocess.Popen([sys.executable, "-c", program])
    for _ in range(400):
        if pid.exists() and pid.read_text():
            break
        time.sleep(0.05)
    os.kill(asker.pid, signal.SIGKILL)
    asker.wait()
    assert gone(int(pid.read_text()))
