"""Engines: a quantized component compiled for a target, one module a kind of engine."""

from collections.abc import Collection
from pathlib import Path
from typing import Literal

import msgspec

from export.artifacts import LOCKS, engine_folder, quantized_folder, read_json
from pi05_runtime.build import Attempt
from pi05_runtime.errors import TargetError
from pi05_runtime.lock import Lock, check_library
from pi05_runtime.targets import find_target

RECORD = "engine.json"


class EngineRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """engine.json. file: what the backend loads, with its sha256. folder: where that lies, in the
    engine's own or in its component's ONNX. recipes: component -> recipe, two of them in a `prefix`.
    onnx: files of the component's ONNX that the target needs to run. attempts and layers: as in the
    manifest."""

    file: str
    sha256: str
    folder: Literal["engine", "onnx"]
    recipes: dict[str, str]
    onnx: tuple[str, ...]
    lock: Lock
    attempts: tuple[Attempt, ...] = ()
    layers: dict[str, int] = {}


def read_record(target: str, network: str) -> EngineRecord:
    """network: a component, or `prefix`. Errors: ArtifactError."""
    return read_json(engine_folder(target, network) / RECORD, EngineRecord)


def engine_file(target: str, network: str) -> Path:
    """The file that the target's backend loads for a network. Errors: ArtifactError."""
    record = read_record(target, network)
    if record.folder == "engine":
        return engine_folder(target, network) / record.file
    return quantized_folder(network, record.recipes[network]) / record.file


def decision_recipes(target: str, networks: Collection[str]) -> dict[str, str]:
    """Component -> the recipe it has in the engines that a decision runs. Errors: ArtifactError."""
    return {c: recipe for n in networks for c, recipe in read_record(target, n).recipes.items()}


def read_lock(target: str) -> Lock:
    """The target's lock, honoured by this machine's library. Errors: TargetError with both versions."""
    find_target(target)
    path = LOCKS / f"{target}.json"
    if not path.is_file():
        raise TargetError(f"{path} not found: a lock is committed for every target, restore it from git")
    lock = read_json(path, Lock)
    check_library(target, lock, f"install that version, or change {path} on purpose and rebuild")
    return lock
