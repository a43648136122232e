"""The pipeline as DVC sees it: what runs again after a change, and what does not."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.pipeline import ROOT, change_params

CODE = ("constraints.txt", "dvc.yaml", "export", "runtime", "validate")


def make_repository(folder: Path) -> Path:
    """Adds the pipeline's code to a workspace."""
    for name in CODE:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    dvc(folder, "init", "--no-scm")
    return folder


@pytest.fixture(scope="module")
def recorded(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished workspace with its state recorded in dvc.lock, as after `dvc repro`."""
    folder = make_repository(shutil.copytree(workspace, tmp_path_factory.mktemp("dvc") / "repository"))
    dvc(folder, "commit", "--force")
    return folder


@pytest.fixture
def repository(recorded: Path, tmp_path: Path) -> Path:
    return shutil.copytree(recorded, tmp_path / "repository")


def dvc(folder: Path, *arguments: str) -> str:
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(["dvc", *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def stages_run(folder: Path, *options: str) -> set[str]:
    """The stages that `dvc repro` runs."""
    lines = dvc(folder, "repro", *options).splitlines()
    return {line.split("'")[1] for line in lines if line.startswith("Running stage '")}


def stages_to_run(folder: Path) -> set[str]:
    """The stages that a change makes run again, and all that depend on them."""
    return stages_run(folder, "--dry", "--force-downstream")


def test_nothing_runs_twice(repository: Path):
    assert stages_to_run(repository) == set()


@pytest.mark.parametrize("component", ["vision", "prefill", "denoise"])
def test_a_recipe_reruns_its_component_and_what_depends_on_it(repository: Path, component: str):
    change_params(repository, **{f"components__{component}": {"recipe": "int8", "keep": []}})
    assert stages_to_run(repository) == {
        f"quantize@{component}",
        f"engine@cpu-ort-{component}",
        f"parity@cpu-ort-{component}",
        "actions@cpu-ort",
        "bundle",
    }


def test_a_threshold_reruns_gates_and_no_engine(repository: Path):
    change_params(repository, gates__action_cosine__fp8=0.99)
    assert stages_to_run(repository) == {"actions@cpu-ort", "bundle"}


def test_engines_act_where_they_are_asked_to_and_before_they_are_bundled(repository: Path):
    (repository / "demo" / "simulator-requirements.txt").touch()
    change_params(repository, gates__closed_loop__targets=["cpu-ort"])
    assert stages_to_run(repository) == {"closed_loop@cpu-ort", "bundle"}


def test_a_weight_reruns_its_component_only(repository: Path):
    """A fine-tune that leaves vision alone keeps vision's graph and engine."""
    path = repository / "artifacts" / "checkpoint" / "denoise.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()
    path.write_bytes(data)
    dvc(repository, "commit", "--force", "checkpoint")
    stages = stages_to_run(repository)
    assert "export@denoise" in stages
    assert not {"export@vision", "export@prefill"} & stages


def test_metrics_can_be_compared(repository: Path):
    assert "actions" in dvc(repository, "metrics", "show")


def test_dvc_runs_every_stage_once_and_then_what_a_recipe_changes(fresh_workspace: Path):
    """The commands of dvc.yaml, for real."""
    repository = make_repository(fresh_workspace)
    assert len(stages_run(repository)) == 18
    assert (repository / "artifacts" / "bundle" / "manifest.json").is_file()
    assert stages_run(repository) == set()
    change_params(repository, components__denoise={"recipe": "int8", "keep": []})
    assert stages_run(repository) == {
        "quantize@denoise",
        "engine@cpu-ort-denoise",
        "parity@cpu-ort-denoise",
        "actions@cpu-ort",
        "bundle",
    }
