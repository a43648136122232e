"""The fetch stage against a Hub that is not there."""

import errno
import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from export.checkpoint import hub
from pi05_runtime.errors import CheckpointError, ParamsError
from tests.pipeline import change_params, run_stage

REVISION = "0123456789abcdef0123456789abcdef01234567"
EMPTY_OBJECT = hashlib.sha256(b"{}").hexdigest()
ENTRY = {"libero": {"repo": "someone/pi05_libero", "revision": REVISION}}


@pytest.fixture
def workspace(tmp_path: Path, root: Path) -> Path:
    (tmp_path / "params.yaml").write_bytes((root / "params.yaml").read_bytes())
    change_params(tmp_path, hub=ENTRY)
    return tmp_path


def serve(monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> list[tuple[str, str]]:
    """A Hub that writes one file, then raises `error`; what was asked of it."""
    asked: list[tuple[str, str]] = []

    def snapshot_download(repo: str, *, revision: str, local_dir: Path) -> None:
        asked.append((repo, revision))
        (local_dir / ".cache" / "huggingface").mkdir(parents=True)
        (local_dir / "config.json").write_text("{}")
        if error is not None:
            raise error

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(hub, "stored_hashes", lambda repo, revision: {"config.json": EMPTY_OBJECT})
    return asked


def fetched(workspace: Path) -> list[str]:
    folder = workspace / "artifacts" / "hub"
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def test_the_pinned_revision_is_what_is_asked_for(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    asked = serve(monkeypatch)
    run_stage(workspace, "export.checkpoint.hub", "libero")
    assert asked == [("someone/pi05_libero", REVISION)]


def test_only_the_repositorys_own_files_are_kept(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    """The client's notes hold the time of the download, and would change the hash of the same commit."""
    serve(monkeypatch)
    run_stage(workspace, "export.checkpoint.hub", "libero")
    assert fetched(workspace) == ["libero", "libero/config.json"]


@pytest.mark.parametrize("kind", [ConnectionError, TimeoutError, RuntimeError, ValueError])
def test_a_failed_download_is_a_checkpoint_error_and_leaves_nothing(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, kind: Callable[[str], Exception]
):
    serve(monkeypatch, kind("connection reset"))
    with pytest.raises(CheckpointError, match=f"someone/pi05_libero at {REVISION} .*connection reset"):
        run_stage(workspace, "export.checkpoint.hub", "libero")
    assert fetched(workspace) == []


def test_a_failed_download_keeps_the_one_before(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    serve(monkeypatch)
    run_stage(workspace, "export.checkpoint.hub", "libero")
    serve(monkeypatch, ConnectionError("reset"))
    with pytest.raises(CheckpointError):
        run_stage(workspace, "export.checkpoint.hub", "libero")
    assert fetched(workspace) == ["libero", "libero/config.json"]


def test_a_full_disk_is_not_blamed_on_the_network(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    serve(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OSError, match="No space left on device"):
        run_stage(workspace, "export.checkpoint.hub", "libero")
    assert fetched(workspace) == []


def test_an_unknown_name_is_refused(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    asked = serve(monkeypatch)
    with pytest.raises(ParamsError, match=r"hub has no entry 'droid'; it has \['libero'\]"):
        run_stage(workspace, "export.checkpoint.hub", "droid")
    assert not asked


@pytest.mark.parametrize("revision", ["main", "v1.0", REVISION[:7], REVISION.upper(), f"{REVISION}0"])
def test_a_revision_that_is_no_full_commit_is_refused(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, revision: str
):
    asked = serve(monkeypatch)
    change_params(workspace, hub={"libero": {"repo": "someone/pi05_libero", "revision": revision}})
    with pytest.raises(ParamsError, match="revision"):
        run_stage(workspace, "export.checkpoint.hub", "libero")
    assert not asked


def test_a_body_corrupted_on_the_way_is_refused(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    serve(monkeypatch)
    monkeypatch.setattr(hub, "stored_hashes", lambda repo, revision: {"config.json": "0" * 64})
    with pytest.raises(CheckpointError, match=r"config\.json: sha256 .* downloaded"):
        run_stage(workspace, "export.checkpoint.hub", "libero")
    assert fetched(workspace) == []


def test_hashes_are_those_of_the_large_files(monkeypatch: pytest.MonkeyPatch):
    large = SimpleNamespace(rfilename="model.safetensors", lfs=SimpleNamespace(sha256="abc"))
    small = SimpleNamespace(rfilename="config.json", lfs=None)
    siblings = SimpleNamespace(siblings=[large, small])
    monkeypatch.setattr(hub, "model_info", lambda repo, revision, files_metadata: siblings)
    assert hub.stored_hashes("someone/pi05_libero", REVISION) == {"model.safetensors": "abc"}
