"""Engines: a quantized component compiled for a target, one module a kind of engine."""

from importlib import metadata
from pathlib import Path
from typing import Literal

import msgspec

from export.artifacts import LOCKS, engine_folder, quantized_folder, read_json
from pi05_runtime.errors import TargetError

RECORD = "engine.json"


class Lock(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The engine builder that a target is pinned to."""

    library: str
    version: str


class EngineRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """engine.json. file: what the backend loads, with its sha256. folder: where that lies, in the
    engine's own or in the component's ONNX. onnx: files of the component's ONNX that the target needs,
    to run or to rebuild. built_with: library -> exact version."""

    file: str
    sha256: str
    folder: Literal["engine", "onnx"]
    onnx: tuple[str, ...]
    built_with: dict[str, str]


def read_record(target: str, component: str) -> EngineRecord:
    """Errors: ArtifactError."""
    return read_json(engine_folder(target, component) / RECORD, EngineRecord)


def engine_file(target: str, component: str) -> Path:
    """The file that the target's backend loads for a component. Errors: ArtifactError."""
    record = read_record(target, component)
    own = record.folder == "engine"
    return (engine_folder(target, component) if own else quantized_folder(component)) / record.file


def check_lock(target: str) -> Lock:
    """The target's lock, honoured by this machine. Errors: TargetError with both versions."""
    path = LOCKS / f"{target}.json"
    lock = read_json(path, Lock)
    try:
        found = metadata.version(lock.library)
    except metadata.PackageNotFoundError:
        found = "none"
    if found != lock.version:
        raise TargetError(
            f"{target} is locked to {lock.library} {lock.version}, this machine has {found}: install "
            f"that version, or change {path} on purpose and rebuild"
        )
    return lock
