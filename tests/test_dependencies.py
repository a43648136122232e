"""dvc.yaml against the code: a stage runs again when any module that it imports changes."""

import ast
from functools import cache
from pathlib import Path

import pytest
import yaml

from tests.pipeline import ROOT

PACKAGES = {
    "export": ROOT / "export",
    "validate": ROOT / "validate",
    "pi05_runtime": ROOT / "runtime/pi05_runtime",
}
INFRASTRUCTURE = {
    "export/__init__.py",
    "export/artifacts.py",
    "export/params.py",
    "export/stage.py",
    "runtime/pi05_runtime/__init__.py",
    "runtime/pi05_runtime/errors.py",
    "runtime/pi05_runtime/signals.py",
    "runtime/pi05_runtime/staging.py",
    "runtime/pi05_runtime/targets.py",
    "validate/__init__.py",
}
"""How stages start, end and find each other: a change there does not change what they compute."""


def module_file(name: str) -> Path | None:
    """The file of a module of this repository."""
    package, *rest = name.split(".")
    if package not in PACKAGES:
        return None
    path = PACKAGES[package].joinpath(*rest)
    found = [path / "__init__.py", path.with_suffix(".py")]
    return next((file for file in found if file.is_file()), None)


@cache
def imports(file: Path) -> frozenset[Path]:
    """The repository's modules that `file` imports, inside functions too, with their packages."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    parents = {name.rsplit(".", i)[0] for name in names for i in range(name.count(".") + 1)}
    return frozenset(path for name in names | parents if (path := module_file(name)))


def closure(file: Path) -> set[str]:
    seen: set[str] = set()
    left = [file]
    while left:
        path = left.pop()
        name = path.relative_to(ROOT).as_posix()
        if name not in seen | INFRASTRUCTURE and not is_docstring(path):
            seen.add(name)
            left += imports(path)
    return seen


def is_docstring(file: Path) -> bool:
    return all(isinstance(node, ast.Expr) for node in ast.parse(file.read_text()).body)


def stages() -> dict[str, dict[str, object]]:
    """Stage -> its definition, without the loop around it."""
    definitions = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    return {name: stage.get("do", stage) for name, stage in definitions.items()}


@pytest.mark.parametrize("name", stages())
def test_a_stage_depends_on_the_code_it_runs(name: str):
    stage = stages()[name]
    module = str(stage["cmd"]).split()[2]
    file = module_file(f"{module}.__main__") or module_file(module)
    assert file is not None
    code = [ROOT / str(dep) for dep in stage["deps"] if not str(dep).startswith(("artifacts", "$"))]
    covered = {
        p.relative_to(ROOT).as_posix() for d in code for p in ([d] if d.is_file() else d.rglob("*.py"))
    }
    assert sorted(closure(file) - covered) == []


@pytest.mark.parametrize("name", stages())
def test_a_stage_depends_on_no_file_that_is_not_there(name: str):
    for dep in map(str, stages()[name]["deps"]):
        assert dep.startswith(("artifacts", "$", "metrics")) or (ROOT / dep).exists(), dep
