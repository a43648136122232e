"""The runtime installs alone, as a device has it: no pipeline, no torch, and its bundle still acts."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline import ROOT

FOREIGN = ("torch", "onnx", "modelopt", "tensorrt", "dvc", "huggingface_hub")


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a venv that holds pi05-runtime and nothing else."""
    folder = tmp_path_factory.mktemp("device")
    # From a copy: setuptools leaves a build folder beside what it builds, and reads it the next time.
    source = shutil.copytree(ROOT / "runtime", folder / "runtime")
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    pip = [venv / "bin" / "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt"]
    subprocess.run([*pip, f"{source}[ort]"], check=True, capture_output=True)
    return venv / "bin"


def test_it_brings_no_part_of_the_pipeline(device: Path):
    found = f"import importlib.util as u; print([m for m in {FOREIGN} if u.find_spec(m)])"
    done = subprocess.run([device / "python", "-I", "-c", found], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_it_passes_the_bundles_self_test(device: Path, bundle: Path, tmp_path: Path):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [device / "pi05", "selftest", bundle, "--target", "cpu-ort"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "self-test of cpu-ort passed" in done.stdout
