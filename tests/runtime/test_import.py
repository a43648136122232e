"""The runtime stands alone: no part of the pipeline, and nothing that a robot does not need."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline import ROOT, TARGET

RUNTIME = ROOT / "runtime"
SOURCES = sorted((RUNTIME / "pi05_runtime").rglob("*.py"))
PIPELINE = {"export", "validate", "demo", "tests", "torch", "onnx", "modelopt", "tensorrt"}
LAZY = {
    "cuda",
    "msgpack",
    "numpy",
    "onnxruntime",
    "PIL",
    "safetensors",
    "sentencepiece",
    "tensorrt_rtx",
    "msgspec",
    "tqdm",
    "websockets",
}
# Modules whose distribution has another name. TensorRT itself comes with JetPack and is in no extra; Triton
# is the pipeline's, which asks the runtime for its version.
DISTRIBUTIONS = {"PIL": "pillow", "cuda": "cuda-python", "tensorrt_rtx": "tensorrt-rtx-cu13"}
ELSEWHERE = {"tensorrt", "triton"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((RUNTIME / "pyproject.toml").read_text())["project"]


def python(program: str, *arguments: object) -> str:
    """Runs a program in an interpreter of its own, away from the repository."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd="/").stdout


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w.-]", requirement)[0].lower() for requirement in requirements}


def imports(source: Path) -> set[str]:
    """Top-level names of all modules that a file imports, at any depth."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{source}: a relative import"
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found.add(ast.literal_eval(node.args[0]).split(".")[0])
    return found


def test_import_loads_no_library() -> None:
    program = "import sys; old = set(sys.modules); import pi05_runtime; print(*(set(sys.modules) - old))"
    loaded = python(program).split()
    assert "pi05_runtime" in loaded
    assert not {name.split(".")[0] for name in loaded} & (PIPELINE | LAZY)
    assert len(loaded) < 40


def test_decision_needs_nothing_of_the_pipeline(workspace: Path) -> None:
    program = f"""
import sys
for name in {sorted(PIPELINE)}:
    sys.modules[name] = None
from pathlib import Path
from pi05_runtime import golden
golden.selftest(Path(sys.argv[1]), sys.argv[2])
print("acted")
"""
    assert python(program, workspace / "artifacts" / "bundle", TARGET) == "acted\n"


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.relative_to(RUNTIME).as_posix())
def test_source_imports_only_what_is_declared(source: Path, project: dict[str, Any]) -> None:
    declared = names(project["dependencies"])
    if source.parent.name == "engines":
        declared = declared.union(ELSEWHERE, *map(names, project["optional-dependencies"].values()))
    if source.parent.name == "serve":
        declared = declared | names(project["optional-dependencies"]["serve"])
    third_party = imports(source) - sys.stdlib_module_names - {"pi05_runtime"}
    assert {DISTRIBUTIONS.get(name, name) for name in third_party} <= declared


def test_dependencies_are_few_and_all_used(project: dict[str, Any]) -> None:
    used = set[str]().union(*map(imports, SOURCES))
    declared = names(project["dependencies"])
    assert not declared & (PIPELINE | {"onnxruntime", "nvidia-modelopt"})
    assert {"PIL" if name == "pillow" else name for name in declared} <= used


def test_every_package_is_installed() -> None:
    config = tomllib.loads((RUNTIME / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {".".join(source.parent.relative_to(RUNTIME).parts) for source in SOURCES}
    assert set(config["packages"]) == folders
