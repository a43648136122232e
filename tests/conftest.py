"""One run of the whole pipeline for the session; tests that change anything work on copies."""

import shutil
from pathlib import Path

import pytest

import tests.kernels.interpreter  # noqa: F401  before any kernel
from tests.pipeline import ROOT, make_workspace, run_pipeline


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every stage ran on a few of the demo's observations. Read it, copy it, but
    do not write to it."""
    folder = make_workspace(tmp_path_factory.mktemp("pipeline"))
    run_pipeline(folder)
    return folder


@pytest.fixture
def bundle(workspace: Path, tmp_path: Path) -> Path:
    """A bundle of one's own, to damage."""
    return shutil.copytree(workspace / "artifacts" / "bundle", tmp_path / "bundle")


@pytest.fixture
def copied_workspace(workspace: Path, tmp_path: Path) -> Path:
    """A finished workspace of one's own, to change and run stages in again."""
    return shutil.copytree(workspace, tmp_path / "workspace", symlinks=True)


@pytest.fixture
def fresh_workspace(tmp_path: Path) -> Path:
    """params.yaml and inputs, and nothing run yet."""
    return make_workspace(tmp_path / "workspace")


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT
