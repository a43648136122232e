"""Engines: a quantized component compiled for a target, one module a kind of engine."""

from importlib import metadata
from pathlib import Path

import msgspec

from export.quantize import folder as quantized_folder
from export.stage import ARTIFACTS
from pi05_runtime.errors import TargetError

LOCKS = ARTIFACTS / "locks"
RECORD = "engine.json"


class Lock(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The engine builder that a target is pinned to."""

    library: str
    version: str


class EngineRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """engine.json. file: what the backend loads, in the engine's folder, or in the quantized
    component's where `onnx` lists the files that the engine reads there."""

    file: str
    onnx: tuple[str, ...]
    built_with: dict[str, str]


def folder(target: str, component: str) -> Path:
    return ARTIFACTS / "engine" / target / component


def read_record(target: str, component: str) -> EngineRecord:
    return msgspec.json.decode((folder(target, component) / RECORD).read_bytes(), type=EngineRecord)


def engine_file(target: str, component: str) -> Path:
    """The file that the target's backend loads for a component."""
    record = read_record(target, component)
    return (quantized_folder(component) if record.onnx else folder(target, component)) / record.file


def check_lock(target: str) -> Lock:
    """The target's lock, honoured by this machine. Errors: TargetError with both versions."""
    path = LOCKS / f"{target}.json"
    lock = msgspec.json.decode(path.read_bytes(), type=Lock)
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
