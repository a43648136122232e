"""`python -m validate.closed_loop` with policies behind the real server: it goes on, and gives the same."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from pi05_runtime.errors import GateError
from tests.pipeline import ROOT
from tests.validate.closed_loop.fake_policy import (
    FakePolicy,
    command,
    decide,
    episodes,
    off_by,
    served,
)
from validate.closed_loop.records import ClosedLoopError

PROGRAM = "tests.validate.closed_loop.fake_policy"


@pytest.fixture
def reference() -> Iterator[str]:
    with served(FakePolicy()) as address:
        yield address


@pytest.fixture
def coarse() -> Iterator[str]:
    with served(FakePolicy(off_by(0.02))) as address:
        yield address


def pids(folder: Path) -> list[int]:
    return [int(file.name) for file in folder.iterdir()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_every_policy_in_every_scene(
    tmp_path: Path, reference: str, coarse: str, capsys: pytest.CaptureFixture[str]
):
    flags = ("--scenes", 2, "--reference", reference, "--policy", f"coarse={coarse}", "--policy", "expert")
    command(tmp_path, *flags)
    found = episodes(tmp_path)
    assert len(found) == 2 * 2 * 3 and all(episode["success"] for episode in found.values())
    assert "episodes/fake/left/1/coarse.json" in found
    assert (tmp_path / "closed_loop.html").exists() and "| coarse |" in capsys.readouterr().out
    run = json.loads((tmp_path / "run.json").read_bytes())
    assert list(run["policies"]) == ["reference", "coarse", "expert"]
    assert run["policies"]["coarse"]["name"] == "fake" and "numpy" in run["simulators"]["fake"]


def test_what_is_there_is_not_run_again(tmp_path: Path, reference: str):
    command(tmp_path, "--scenes", 1, "--reference", reference)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.json") if file.name != "run.json"}
    command(tmp_path, "--scenes", 2, "--reference", reference)
    assert len(episodes(tmp_path)) == 4
    assert all(file.stat().st_mtime_ns == when for file, when in before.items() if "episodes" in file.parts)


def test_another_policy_joins_and_is_the_same_as_from_the_start(tmp_path: Path, reference: str, coarse: str):
    late, together = tmp_path / "late", tmp_path / "together"
    flags = ("--scenes", 2, "--reference", reference)
    command(late, *flags)
    command(late, *flags, "--policy", f"coarse={coarse}")
    command(together, *flags, "--policy", f"coarse={coarse}")
    assert episodes(late) == episodes(together)


def test_several_processes_bring_what_one_does(tmp_path: Path, reference: str, coarse: str):
    command(tmp_path / "one", "--scenes", 3, "--reference", reference)
    with served(FakePolicy()) as second:
        flags = ("--scenes", 3, "--reference", f"{reference},{second}", "--processes", 2)
        command(tmp_path / "two", *flags)
    assert episodes(tmp_path / "one") == episodes(tmp_path / "two")


def test_a_run_that_is_killed_goes_on(tmp_path: Path, reference: str, coarse: str):
    killed, whole, started = tmp_path / "killed", tmp_path / "whole", tmp_path / "processes"
    started.mkdir()
    flags = ("--scenes", 3, "--reference", reference, "--policy", f"coarse={coarse}")
    command(whole, *flags)
    slow = {
        **os.environ,
        "SIMULATOR_SECONDS": "0.1",
        "SIMULATOR_PROCESSES": str(started),
        "PYTHONPATH": str(ROOT),
    }
    for wanted in (1, 4):
        process = subprocess.Popen([sys.executable, "-m", PROGRAM, str(killed), *map(str, flags)], env=slow)
        while len(list(killed.rglob("episodes/*/*/*/*.json"))) < wanted:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 4 <= len(episodes(killed)) < len(episodes(whole))
    assert not list(killed.rglob("closed_loop.html"))
    command(killed, *flags)
    assert episodes(killed) == episodes(whole)
    for _ in range(100):
        if not any(map(alive, pids(started))):
            break
        time.sleep(0.1)
    assert pids(started) and not any(map(alive, pids(started)))


def test_one_that_is_told_to_end_leaves_no_process(tmp_path: Path, reference: str):
    out, started = tmp_path / "out", tmp_path / "processes"
    started.mkdir()
    environment = {
        **os.environ,
        "SIMULATOR_SECONDS": "600",
        "SIMULATOR_PROCESSES": str(started),
        "PYTHONPATH": str(ROOT),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", PROGRAM, str(out), "--reference", reference], env=environment
    )
    while not pids(started):
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(300) == 128 + signal.SIGTERM
    assert not any(map(alive, pids(started))) and episodes(out) == {}


def test_a_failure_is_filmed(tmp_path: Path):
    with served(FakePolicy(lambda o: 0 * decide(o))) as lazy:
        command(tmp_path, "--scenes", 1, "--task", "left", "--policy", f"lazy={lazy}")
    (episode,) = episodes(tmp_path).values()
    assert episode["video"] == "lazy.webp" and not episode["success"]
    with Image.open(tmp_path / "episodes/fake/left/0/lazy.webp") as film:
        assert (film.size, film.n_frames) == ((6, 8), 1)  # all frames are equal, and kept once


def test_the_self_test_passes_where_mutants_lose(
    tmp_path: Path, reference: str, capsys: pytest.CaptureFixture[str]
):
    command(tmp_path, "--scenes", 3, "--reference", reference, "--self-test")
    said = capsys.readouterr().out
    assert "self-test: reference+black-images lost 6 of 6 scenes, gained 0" in said
    assert "self-test: reference+wrong-prompt lost 6 of 6 scenes, gained 0" in said


def test_the_self_test_fails_where_nobody_looks(tmp_path: Path):
    def listening(observation):
        """Left or right, as it is told, and always as far."""
        side = 1 if observation["prompt"] == "go right" else -1
        looked = 0.1 * observation["images"]["front"].mean() / 255
        return decide(observation) * [0, 1] + [[side * (0.09 + 0 * looked), looked]]

    with (
        served(FakePolicy(listening)) as reference,
        pytest.raises(GateError, match=r"reference\+black-images lost 0 of 6"),
    ):
        command(tmp_path, "--scenes", 3, "--reference", reference, "--self-test")


def test_a_crash_of_the_simulator_ends_the_run(
    tmp_path: Path, reference: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SIMULATOR_FAULT", "die-execute:1")
    with pytest.raises(
        ClosedLoopError, match=r"ended at execute: status 11 \| the line has crashed; run again"
    ):
        command(tmp_path, "--task", "left", "--scenes", 2, "--reference", reference)
    assert list(episodes(tmp_path)) == ["episodes/fake/left/0/reference.json"]
    monkeypatch.delenv("SIMULATOR_FAULT")
    command(tmp_path, "--task", "left", "--scenes", 2, "--reference", reference)
    assert len(episodes(tmp_path)) == 2
