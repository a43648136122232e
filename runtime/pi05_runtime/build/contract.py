"""What callers give to the builder and get from it, and what it says to its worker process in JSON."""

from pathlib import Path
from typing import Literal

import msgspec

from pi05_runtime.build.evidence import Evidence
from pi05_runtime.engines.library import Library
from pi05_runtime.geometry import Signature
from pi05_runtime.table import Table

ONNX, WEIGHTS, TABLE = "bf16.onnx", "weights.bin", "table.json"
"""A component's ONNX folder, as far as a builder needs it."""


class BuildOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """minutes: time limit of one attempt. workspace_gib: scratch memory that a kernel may use on the GPU.
    timing_cache: file in which `tensorrt` keeps what it measured, made if absent; `tensorrt_rtx` has none."""

    minutes: float
    workspace_gib: float
    timing_cache: str | None = None


class Attempt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One rung of the ladder. recipes: component -> recipe. outcome: "built", or one line on what went
    wrong, the same on every machine."""

    recipes: dict[str, str]
    optimization_level: int
    outcome: str


class Built(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An engine. recipes: what it was built from. layers: linear products by the precision they run in.
    seconds and peak_gb: of the attempt that built it."""

    recipes: dict[str, str]
    attempts: tuple[Attempt, ...]
    layers: dict[str, int]
    file: str
    seconds: float
    peak_gb: float


class Part(msgspec.Struct, frozen=True):
    """A component in one of its recipes. onnx: absolute path."""

    component: str
    onnx: str
    table: Table

    @property
    def folder(self) -> Path:
        return Path(self.onnx).parent


class Request(msgspec.Struct, frozen=True):
    """One attempt, as the worker reads it. parts: in the order of the data; two are
    built as one network. profiles: shapes of the inputs that are not fixed, one entry a prompt bucket.
    out: folder for the engine, `<name>.engine`, and its evidence. parent: process that waits for it."""

    library: Library
    compute_capability: str
    name: str
    parts: tuple[Part, ...]
    signature: Signature
    profiles: tuple[dict[str, tuple[int, ...]], ...]
    optimization_level: int
    options: BuildOptions
    out: str
    parent: int


class Done(msgspec.Struct, frozen=True, tag=True):
    """The worker's answer when the engine and its evidence are written."""

    evidence: Evidence
    seconds: float
    peak_gb: float


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The worker's answer otherwise. reason: one line. final: the error it is at once, where no other rung
    can change it. detail: for a person, not for the manifest."""

    reason: str
    final: Literal["EngineError", "TargetError"] | None = None
    detail: str = ""
