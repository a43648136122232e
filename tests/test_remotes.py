"""What one machine built, another does not build again: the lines of docs/remotes.md, on two clones."""

import hashlib
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from moto.server import ThreadedMotoServer

from tests.pipeline import ROOT, TARGET, change_params, run_stage
from tests.test_pipeline import CODE

DOCS = (ROOT / "docs" / "remotes.md").read_text()
DVC_FILES = (".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore")
GIT = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_AUTHOR_NAME": "test",
    "GIT_AUTHOR_EMAIL": "test@localhost",
    "GIT_COMMITTER_NAME": "test",
    "GIT_COMMITTER_EMAIL": "test@localhost",
}

NO_BUILDER = f"""#!/bin/sh
case "$2" in validate.*) exec {shlex.quote(sys.executable)} "$@" ;; esac
echo "python $* was run" >&2
exit 97
"""
"""The `python` of a machine that can judge and cannot build."""


@dataclass(frozen=True)
class Team:
    """Machine A after its push, the directory it pushed to, and its outputs of the commit before the last."""

    machine_a: Path
    builds: Path
    before: dict[str, str]


def run(folder: Path, line: str, code: int = 0) -> str:
    done = subprocess.run(
        shlex.split(line), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == code, f"{line}\n{done.stdout}"
    return done.stdout


def follow(folder: Path, line: str, **here: object) -> str:
    """Runs a line of the document; its words in capitals stand for what they are `here`."""
    assert re.search(rf"^{re.escape(line)}( +#.*)?$", DOCS, re.MULTILINE), line
    for name, value in here.items():
        line = line.replace(name, str(value))
    return run(folder, line)


def stages_run(output: str) -> set[str]:
    return set(re.findall(r"Running stage '(.+)'", output))


def outputs(folder: Path) -> dict[str, str]:
    """Every file that stages wrote, by its hash."""
    files = [path for top in ("artifacts", "metrics") for path in (folder / top).rglob("*") if path.is_file()]
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }


def commit_what_ran(machine: Path) -> None:
    """As after `dvc repro`; what the document commits is all that there is to commit."""
    run(machine, "dvc commit --force")
    follow(machine, "git add dvc.lock metrics params.yaml")
    run(machine, "git commit --message 'another recipe'")
    assert run(machine, "git status --porcelain") == ""


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an S3 on loopback, with a bucket."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    requests.put(f"{url}/BUCKET", timeout=60).raise_for_status()
    config = tmp_path_factory.mktemp("aws") / "config"
    config.touch()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_CONFIG_FILE", str(config))
        patch.setenv("AWS_ACCESS_KEY_ID", "a")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "b")
        yield url
    server.stop()


@pytest.fixture(scope="module")
def git() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in GIT.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def team(workspace: Path, git: None, s3: str, tmp_path_factory: pytest.TempPathFactory) -> Team:
    """Machine A, which alone has the checkpoint, ran two recipes of denoise, committed each, and pushed."""
    folder = tmp_path_factory.mktemp("team")
    machine, builds = shutil.copytree(workspace, folder / "machine_a"), folder / "builds"
    for name in (*CODE, *DVC_FILES):
        (machine / name).parent.mkdir(exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, machine / name)
    with (machine / ".gitignore").open("a") as ignored:
        ignored.write("/demo/checkpoint/\n")
    run(machine, "git init --initial-branch main")
    follow(machine, "dvc remote add --default cloud s3://BUCKET/pi05")
    follow(machine, "dvc remote modify cloud endpointurl URL", URL=s3)
    follow(machine, "dvc remote modify cloud verify true")
    follow(machine, "dvc remote add --default team DIRECTORY", DIRECTORY=builds)
    follow(machine, "dvc remote modify team verify true")
    run(machine, "git add --all")
    run(machine, "git commit --message 'the repository'")
    commit_what_ran(machine)
    # As `dvc repro` leaves them: what the next stages find are links to the cache, which they must not touch.
    run(machine, "dvc checkout --relink")
    before = outputs(machine)
    change_params(machine, components__denoise={"recipe": "bf16", "keep": []})
    for stage in (("export.quantize",), ("export.engine.__main__", TARGET), ("validate.parity", TARGET)):
        run_stage(machine, *stage, "denoise")
    run_stage(machine, "validate.actions", TARGET)
    run_stage(machine, "export.bundle")
    commit_what_ran(machine)
    follow(machine, "dvc push --run-cache --all-commits")
    run(machine, "dvc push --run-cache --all-commits --remote cloud")
    return Team(machine, builds, before)


@pytest.fixture
def machine_b(team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone, without the checkpoint, where nothing can be built."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(NO_BUILDER)
    python.chmod(0o755)
    monkeypatch.setenv("PATH", f"{python.parent}{os.pathsep}{os.environ['PATH']}")
    run(tmp_path, f"git clone {team.machine_a} machine_b")
    return tmp_path / "machine_b"


@pytest.mark.parametrize("remote", ["team", "cloud"])
def test_a_clone_gets_what_was_built(team: Team, machine_b: Path, remote: str) -> None:
    """And an engine of the recipe before, which dvc.lock no longer knows, is found by its inputs."""
    run(machine_b, f"dvc remote default --local {remote}")
    assert stages_run(follow(machine_b, "dvc repro --pull")) == set()
    assert outputs(machine_b) == outputs(team.machine_a)
    assert run(machine_b, "git status --porcelain") == ""
    shutil.copy(ROOT / "params.yaml", machine_b)
    assert stages_run(run(machine_b, f"dvc repro --pull engine@{TARGET}-denoise")) == set()
    folder = f"artifacts/engine/{TARGET}/denoise/"
    engine = {name: digest for name, digest in outputs(machine_b).items() if name.startswith(folder)}
    assert engine == {name: digest for name, digest in team.before.items() if name.startswith(folder)}


def test_gates_of_a_recipe_that_came_from_a_remote_run_again(team: Team, machine_b: Path) -> None:
    """Their numbers are in git, which has those of another recipe. The bundle is the same again."""
    run(machine_b, "dvc pull --run-cache")
    shutil.copy(ROOT / "params.yaml", machine_b)
    ran = stages_run(follow(machine_b, "dvc repro --pull"))
    assert ran == {f"parity@{TARGET}-denoise", f"actions@{TARGET}"}
    assert outputs(machine_b) == team.before


def test_a_shared_cache_has_everything(team: Team, machine_b: Path) -> None:
    """Gates too."""
    shutil.copytree(team.machine_a / "demo" / "checkpoint", machine_b / "demo" / "checkpoint")
    follow(machine_b, "dvc cache dir --local CACHE", CACHE=team.machine_a / ".dvc" / "cache")
    follow(machine_b, "dvc config --local cache.shared group")
    follow(machine_b, "dvc config --local cache.type reflink,hardlink,copy")
    follow(machine_b, "dvc checkout")
    assert outputs(machine_b) == outputs(team.machine_a)
    shutil.copy(ROOT / "params.yaml", machine_b)
    assert stages_run(run(machine_b, "dvc repro")) == set()
    assert outputs(machine_b) == team.before


def test_a_damaged_object_is_not_taken(team: Team, machine_b: Path, tmp_path: Path) -> None:
    builds = shutil.copytree(team.builds, tmp_path / "builds")
    victim = max((path for path in builds.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.chmod(0o644)
    victim.write_bytes(data)
    victim.chmod(0o444)
    run(machine_b, f"dvc remote modify --local team url {builds}")
    assert "failed to pull" in run(machine_b, "dvc pull", code=1)
    assert hashlib.sha256(data).hexdigest() not in outputs(machine_b).values()
