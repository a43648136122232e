"""What callers give to the builder and get from it, and what it says to its worker process in JSON."""

import math
from pathlib import Path
from typing import Literal

import msgspec

from pi05_runtime.build.evidence import Evidence
from pi05_runtime.errors import ParamsError
from pi05_runtime.geometry import Signature
from pi05_runtime.layer_table import Table
from pi05_runtime.targets import Library

ONNX, WEIGHTS, TABLE = "bf16.onnx", "weights.bin", "table.json"
"""A component's ONNX folder, as far as a builder needs it."""


class BuildOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """minutes: time limit of one attempt. workspace_gib: scratch memory that a kernel may use on the GPU.
    timing_cache: file in which `tensorrt` keeps what it measured, made if absent; `tensorrt_rtx` has none."""

    minutes: float
    workspace_gib: float
    timing_cache: str | None = None

    def __post_init__(self) -> None:
        """Errors: ParamsError for a limit that nothing could keep to."""
        for name, value in (("minutes", self.minutes), ("workspace_gib", self.workspace_gib)):
            if not 0 < value < math.inf:
                raise ParamsError(f"{name} {value:g} found, a number above 0 expected; raise it")


class Attempt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One rung of the ladder. recipes: component -> recipe. outcome: "built", or one line on what went
    wrong, the same on every machine: without a folder, an address or a duration that was measured."""

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
    out: folder for the engine, `<name>.engine`, and its evidence."""

    library: Library
    compute_capability: str
    name: str
    parts: tuple[Part, ...]
    signature: Signature
    profiles: tuple[dict[str, tuple[int, ...]], ...]
    optimization_level: int
    options: BuildOptions
    out: str


class Done(msgspec.Struct, frozen=True, tag=True):
    """The worker's answer when the engine and its evidence are written."""

    evidence: Evidence
    seconds: float
    peak_gb: float


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The worker's answer otherwise. reason: an Attempt's outcome. detail: the whole of it, for a person.
    ends_build: the error that it is at once, where no rung can change it. skips_recipe: whether no other
    level can change it, but another recipe may."""

    reason: str
    detail: str = ""
    ends_build: Literal["EngineError", "TargetError"] | None = None
    skips_recipe: bool = False


class RungError(Exception):
    """Why a rung gave no engine, while another one may. Its arguments are as in Refused."""

    def __init__(self, reason: str, detail: str = "", *, skips_recipe: bool = False) -> None:
        super().__init__(reason)
        self.detail = detail
        self.skips_recipe = skips_recipe
