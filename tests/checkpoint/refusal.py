"""A workspace whose checkpoint stage must refuse, and leave everything as it was."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from pi05_runtime.errors import CheckpointError
from tests.pipeline import run_stage

STAGE = "export.checkpoint.__main__"


def assert_refused(workspace: Path, *parts: str) -> None:
    """The stage names every one of `parts`, with an earlier result there and without one."""
    result = workspace / "artifacts" / "checkpoint"
    before = sorted((workspace / "artifacts").rglob("*"))
    with pytest.raises(CheckpointError) as first:
        run_stage(workspace, STAGE)
    assert sorted((workspace / "artifacts").rglob("*")) == before

    result.mkdir()
    (result / "policy.json").write_text("earlier")
    with pytest.raises(CheckpointError):
        run_stage(workspace, STAGE)
    assert [p.name for p in (workspace / "artifacts").glob("*checkpoint*")] == ["checkpoint"]
    assert [p.name for p in result.iterdir()] == ["policy.json"]
    assert (result / "policy.json").read_text() == "earlier"

    missing = [part for part in parts if part not in str(first.value)]
    assert not missing, f"{missing} not in: {first.value}"


def change_weights(file: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def change_json(file: Path, **changes: Any) -> None:
    """Sets keys of a JSON object; None removes one."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
