"""Where each stage leaves its results, and how stages read each other's JSON.

Light on purpose: a stage that needs to know where another writes must not import what it computes with.
"""

from pathlib import Path
from typing import TypeVar

import msgspec

from pi05_runtime.errors import Pi05Error
from pi05_runtime.staging import write_file

ARTIFACTS = Path("artifacts")
CHECKPOINT, TABLES, CALIBRATION = (ARTIFACTS / name for name in ("checkpoint", "tables", "calibration"))
REFERENCE, BUNDLE = ARTIFACTS / "reference", ARTIFACTS / "bundle"
HUB, LOCKS = ARTIFACTS / "hub", ARTIFACTS / "locks"

TOKENIZER = "tokenizer.model"
EMBEDDING, SCHEDULE = "token_embedding.bin", "schedule.safetensors"
MODEL, WEIGHTS = "model.onnx", "weights.bin"
TWINS = ("bf16", "fp32")
TABLE = "table.json"

T = TypeVar("T")


class ArtifactError(Pi05Error):
    """A result of an earlier stage is missing or damaged."""


def graph_folder(component: str) -> Path:
    return ARTIFACTS / "graph" / component


def quantized_folder(component: str, recipe: str) -> Path:
    return ARTIFACTS / "quantized" / component / recipe


def engine_folder(target: str, component: str) -> Path:
    return ARTIFACTS / "engine" / target / component


def read_json(path: Path, kind: type[T]) -> T:
    """Decodes a stage's JSON. Errors: ArtifactError naming file and field."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError) as error:
        raise ArtifactError(f"{path}: {error}; an earlier stage writes this file: run `dvc repro`") from None


def write_json(path: Path, value: msgspec.Struct) -> None:
    """Writes a struct as indented JSON, under a temporary name first."""
    write_file(path, msgspec.json.format(msgspec.json.encode(value)) + b"\n")
