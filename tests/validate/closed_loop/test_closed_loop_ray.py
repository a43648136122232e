"""Over machines: a cluster of Ray on this one brings what this machine brings without it."""

import os
import re
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pi05_runtime.errors import NetworkError
from tests.pipeline import ROOT
from tests.validate.closed_loop.fake_policy import FakePolicy, command, episodes, served
from validate.closed_loop.records import ClosedLoopError

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install --group ray")


@contextmanager
def killing_an_actor(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """One of them, in its second scene or a later one. folder: with the run's folder `out`."""
    started = folder / "simulators"
    started.mkdir()
    monkeypatch.setenv("SIMULATOR_PROCESSES", str(started))
    monkeypatch.setenv("SIMULATOR_SECONDS", "0.2")

    def kill() -> None:
        for _ in range(6000):
            if list(folder.glob("out/episodes/*/*/*/*.json")):
                break
            time.sleep(0.01)
        simulator = next(started.iterdir()).name
        actor = Path(f"/proc/{simulator}/stat").read_text().rpartition(")")[2].split()[1]
        os.kill(int(actor), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    monkeypatch.delenv("SIMULATOR_SECONDS")


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_actors_bring_what_threads_do(tmp_path: Path):
    with served(FakePolicy()) as one, served(FakePolicy()) as two:
        flags = ("--scenes", 3, "--reference", f"{one},{two}", "--processes", 2, "--policy", "expert")
        command(tmp_path / "ray", *flags, "--ray", "local")
        command(tmp_path / "threads", *flags)
    assert len(episodes(tmp_path / "ray")) == 12
    assert episodes(tmp_path / "ray") == episodes(tmp_path / "threads")


def test_what_an_actor_meets_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SIMULATOR_FAULT", "die-execute:1")
    with pytest.raises(
        ClosedLoopError, match=r"^simulator .* its process ended at execute: .*; run again to go on$"
    ):
        command(tmp_path, "--scenes", 2, "--policy", "expert", "--ray", "local")


def test_a_scene_of_an_actor_that_is_lost_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    flags = ("--scenes", 3, "--policy", "expert", "--processes", 2)
    command(tmp_path / "whole", *flags)
    with killing_an_actor(tmp_path, monkeypatch):
        command(tmp_path / "out", *flags, "--ray", "local")
    assert re.search(r"Ray: an actor was lost in fake \w+ \d, another runs it again", capsys.readouterr().err)
    assert episodes(tmp_path / "out") == episodes(tmp_path / "whole")


def test_the_last_actor_names_its_scene_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    flags = ("--scenes", 3, "--policy", "expert", "--ray", "local")
    with (
        killing_an_actor(tmp_path, monkeypatch),
        pytest.raises(
            NetworkError, match=r"last actor was lost in fake \w+ \d, \d scenes are not run .*go on$"
        ),
    ):
        command(tmp_path / "out", *flags)
    assert 0 < len(episodes(tmp_path / "out")) < 6
    command(tmp_path / "out", *flags)
    assert len(episodes(tmp_path / "out")) == 6


def test_more_processes_than_the_cluster_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 1.0})
    with pytest.raises(ClosedLoopError, match="1 CPUs found for 2 processes, one for each expected"):
        command(tmp_path, "--policy", "expert", "--processes", 2, "--ray", "local")


def test_a_cluster_that_is_not_there(tmp_path: Path):
    with pytest.raises(NetworkError, match=r"Ray's cluster .*127\.0\.0\.1:9"):
        command(tmp_path, "--policy", "expert", "--ray", "127.0.0.1:9")
