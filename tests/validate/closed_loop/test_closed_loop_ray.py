"""Over machines: a cluster of Ray on this one brings what this machine brings without it."""

from pathlib import Path

import pytest

from pi05_runtime.errors import NetworkError
from tests.pipeline import ROOT
from tests.validate.closed_loop.fake_policy import FakePolicy, command, episodes, served
from validate.closed_loop.records import ClosedLoopError

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install --group ray")


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


def test_more_processes_than_the_cluster_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 1.0})
    with pytest.raises(ClosedLoopError, match="1 CPUs found for 2 processes, one for each expected"):
        command(tmp_path, "--policy", "expert", "--processes", 2, "--ray", "local")


def test_a_cluster_that_is_not_there(tmp_path: Path):
    with pytest.raises(NetworkError, match=r"Ray's cluster .*127\.0\.0\.1:9"):
        command(tmp_path, "--policy", "expert", "--ray", "127.0.0.1:9")
