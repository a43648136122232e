"""The benchmark's file: everything that was measured, and all that a figure needs to mean something.

Times are in milliseconds. Each run also has the rows `<steps>_steps` of the table that this project started
from, so that the two can be laid side by side.
"""

from pathlib import Path

import msgspec
import numpy as np

from pi05_runtime.errors import Pi05Error
from pi05_runtime.staging import write_file

SCHEMA = 1
FILE = "benchmark.json"


class BenchmarkError(Pi05Error):
    """A benchmark was asked for something that cannot be measured, or its file is not one."""

    exit_code = 2


class Timing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """repeats calls after warm_up ones that do not count. jitter: how far the 99th percentile is above the
    median, as a time and as a ratio."""

    warm_up: int
    repeats: int
    median_ms: float
    p90_ms: float
    p99_ms: float
    min_ms: float
    jitter_ms: float
    jitter_ratio: float
    hz: float


class SeedRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Medians. denoise_ms: of all steps together. None for what an engine does not have apart."""

    e2e_total_ms: float
    vision_ms: float | None
    kv_cache_ms: float | None
    denoise_ms: float | None
    hz: float


OVERLAPPED = "prefill and a step"
"""Prefill with the first denoise step beside it."""
PERIOD_MS = 20
"""Of a controller at 50 Hz, which asks for a decision at one of its ticks."""


class Steps(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One step count. total: from uint8 images on the host to actions in the robot's units on the host.
    samples_ms: of `total`, in the order in which they were taken. inside: what the policy itself times within
    these very decisions. alone: on a GPU, the graph of each network by itself, `denoise` with all its steps;
    and OVERLAPPED where a decision has that. rest_ms: the median total less what is `added`. floor_ms: of the
    decision; distance: the median total over it. paced: as `total`, but asked for every PERIOD_MS; None where
    the median is no less. capped: share of the time of `total`, warm-up included, in which the GPU's power
    limit held its clocks back; None where no driver counts that."""

    steps: int
    total: Timing
    samples_ms: tuple[float, ...]
    inside: dict[str, Timing]
    alone: dict[str, Timing]
    rest_ms: float | None
    floor_ms: float | None
    distance: float | None
    paced: Timing | None = None
    capped: float | None = None

    @property
    def parts(self) -> dict[str, float]:
        """Component -> median, from the networks alone where those were measured."""
        source = self.alone or self.inside
        no_network = ("preprocess", "decision", OVERLAPPED)
        return {name: t.median_ms for name, t in source.items() if name not in no_network}

    @property
    def added(self) -> dict[str, float]:
        """Component -> what a decision takes for it: `parts`, but where the first denoise step goes beside
        prefill, of denoise what that takes longer for it, and the other steps."""
        parts = self.parts
        if OVERLAPPED in self.alone:
            longer = self.alone[OVERLAPPED].median_ms - parts["prefill"]
            parts["denoise"] = longer + parts["denoise"] * (self.steps - 1) / self.steps
        return parts


class Floor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A component, denoise for one step. weights: precision -> bytes. moved: bytes of inputs, outputs and the
    cache. operations: precision -> floating-point operations. bound: what the floor comes from, memory or
    operations. measured_ms: the component's median, of one step; distance: that over the floor."""

    weights: dict[str, int]
    moved: int
    operations: dict[str, int]
    bound: str | None
    floor_ms: float | None
    measured_ms: float | None
    distance: float | None


class Launches(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A row of the kernel table: launches of one network that are one kernel at one shape, one a layer.

    name: without the layer's number. kernel: its function. launches: in one pass of the network. each_us: of
    one, in microseconds. decision_ms: of all, in a decision of the run's most steps; share: that over the sum
    of the table. floor_us: of one, if it is a product or attention; bound: what that comes from, memory or
    operations; distance: each_us over it."""

    network: str
    name: str
    kernel: str
    launches: int
    each_us: float
    decision_ms: float
    share: float
    floor_us: float | None
    bound: str | None
    distance: float | None


class Loading(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where `load_s` goes, and what is loaded. parts_s: on a GPU `device`, opening its context; `verify`, the
    files' hashes; `open`, reading and uploading. verified_bytes: of what was hashed. engine_bytes: network ->
    its file's. gpu_bytes: what less was free after the first decision than before loading, the context apart;
    None without a GPU."""

    parts_s: dict[str, float]
    verified_bytes: int
    engine_bytes: dict[str, int]
    gpu_bytes: int | None


class Golden(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What had to hold before anything was timed: steps -> cosine against the BF16 reference."""

    cosine: dict[int, float]
    threshold: float


class Peer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another implementation at the run's geometry, inputs and weights. absent: why there is no figure, None
    if there is one. cut: why step counts are missing, if any are. prepared_s: the longest first call of a
    step count. cosine: steps -> its actions against the run's reference. agrees: whether they are the same
    policy, without which there is no ratio. ratio: steps -> its median over the run's."""

    name: str
    precision: str
    absent: str | None
    cut: str | None = None
    versions: dict[str, str] = {}
    prepared_s: float | None = None
    timings: dict[int, Timing] = {}
    cosine: dict[int, float] = {}
    agrees: bool = False
    ratio: dict[int, float] = {}


class Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """profile: its name. prefix: image tokens and the prompt's bucket. image: height and width of each
    camera's image as it was given."""

    profile: str
    views: int
    prefix: int
    prompt: int
    horizon: int
    image: tuple[int, int]
    parameters: str


class Device(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """chip: the entry of the table of chips that floors come from, None if there is none. load: of the
    machine's processors, over a minute, before anything ran."""

    name: str
    chip: str | None
    compute_capability: str | None
    driver: str | None
    power_mode: str | None
    jetpack: str | None
    machine: str
    processor: str
    cores: int
    load: float
    versions: dict[str, str]


class Run(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A bundle on a target. recipes: component -> precision. keep: component -> layers that its recipe leaves
    in bf16, as patterns. load_s: until the policy could be asked.
    first_s: its first decision, warm-up and captures included. outside: on a GPU, what a decision does
    besides its networks: `images`, bringing them to the device and, where it does that, into the model's
    square; `prompt`, bringing all else there, and actions back. launches: of kernel plans, in their order.
    missing: what was left out, and why. seed: `<steps>_steps` -> row."""

    name: str
    target: str
    shape: Shape
    recipes: dict[str, str]
    golden: Golden
    load_s: float
    first_s: float
    loading: Loading
    steps: tuple[Steps, ...]
    floors: dict[str, Floor]
    outside: dict[str, Timing] = {}
    launches: tuple[Launches, ...] = ()
    peers: tuple[Peer, ...] = ()
    missing: tuple[str, ...] = ()
    seed: dict[str, SeedRow] = {}
    keep: dict[str, tuple[str, ...]] = {}


class Refused(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A run that was not timed, and why."""

    name: str
    reason: str


class Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """benchmark.json. complete: whether all that was asked for is in it. started: UTC."""

    schema: int
    started: str
    complete: bool
    device: Device
    runs: tuple[Run, ...]
    refused: tuple[Refused, ...]


def summarize(samples: list[float], warm_up: int) -> Timing:
    """samples: milliseconds. Errors: BenchmarkError without any, or for one that is no time."""
    if not samples or not np.isfinite(samples).all() or min(samples) <= 0:
        raise BenchmarkError(f"{len(samples)} samples found, positive finite times expected; measure again")
    median, p90, p99 = (float(x) for x in np.quantile(samples, (0.5, 0.9, 0.99)))
    return Timing(
        warm_up=warm_up,
        repeats=len(samples),
        median_ms=median,
        p90_ms=p90,
        p99_ms=p99,
        min_ms=min(samples),
        jitter_ms=p99 - median,
        jitter_ratio=p99 / median,
        hz=1000 / median,
    )


def seed_rows(steps: tuple[Steps, ...]) -> dict[str, SeedRow]:
    return {
        f"{s.steps}_steps": SeedRow(
            e2e_total_ms=s.total.median_ms,
            vision_ms=s.parts.get("vision"),
            kv_cache_ms=s.parts.get("prefill", s.parts.get("prefix")),
            denoise_ms=s.parts.get("denoise"),
            hz=s.total.hz,
        )
        for s in steps
    }


def write_report(folder: Path, report: Report) -> None:
    data = msgspec.json.format(msgspec.json.encode(report), indent=1)
    write_file(folder / FILE, data + b"\n")


def read_report(path: Path) -> Report:
    """Errors: BenchmarkError for a file that is missing, damaged or of another schema."""
    try:
        report = msgspec.json.decode(path.read_bytes(), type=Report)
    except (OSError, msgspec.DecodeError) as error:
        raise BenchmarkError(f"{path}: {error}; run the benchmark again") from error
    if report.schema != SCHEMA:
        raise BenchmarkError(f"{path}: schema {report.schema} found, {SCHEMA} expected; measure again")
    return report
