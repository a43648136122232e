"""Compiles kernels to machine code for a chip that need not be here, and reads what came out.

Triton brings its assembler and disassembler along, so what the chip will run is known at once: registers,
shared memory, spills, and which tensor-core instructions there are. A variant that does not compile, or not
well, is a value with its reason; compilers crash, so they work in processes of their own.
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Collection
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import msgspec

from export.stage import progress
from pi05_runtime.errors import EngineError

_PROCESSORS = {90: 132, 110: 20, 120: 170}
"""Of an H100, a Thor, an RTX 5090."""
SHARED_BYTES = {90: 227 << 10, 110: 227 << 10, 120: 99 << 10}
"""Shared memory that a block may have, by chip: CUDA's programming guide."""
TENSOR = {
    90: {"HGMMA", "QGMMA"},
    110: {"UTCHMMA", "UTCQMMA"},
    120: {"HMMA", "QMMA"},
}
"""Tensor-core instructions of a chip's full rate: warp groups' on SM90, the fifth generation's on SM110."""
FEW_ROWS = {"HMMA", "QMMA"}
"""Those of a single warp, which are enough too where memory takes the time."""
_INSTRUCTIONS = re.compile(r"\b(HMMA|QMMA|HGMMA|QGMMA|UTCHMMA|UTCQMMA)\b")
_WAITS = re.compile(r"\bACQBULK\b")
"""For the launch before: order.py."""
_WRITES = re.compile(r"\b(?:STG|ST|RED|REDG|ATOM|ATOMG|UTMASTG)\.")
_SPECIALIZED = re.compile(r"\bUSETMAXREG\b")
"""Warps with programs of their own, in whatever order these stand."""
KERNELS = {
    "attention": "attention",
    "decode_attention": "decode_attention",
    "join": "embed",
    "matmul": "matmul",
    "merge": "decode_attention",
    "norm": "norm",
    "patches": "embed",
    "persistent": "persistent",
    "pingpong": "pingpong",
    "resident_attention": "resident_attention",
    "resize": "resize",
    "skinny": "skinny",
    "tall": "tall",
    "tall_attention": "tall_attention",
}
"""Kernel -> its module in export/kernels."""


@dataclass(frozen=True)
class Specialization:
    """What a binary is compiled from. signature: argument -> Triton's type, or "constexpr". constants: what
    argument of that kind is, None too. registers: of a thread as its block starts, None where the assembler
    has its way."""

    kernel: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, int | str | None], ...]
    warps: int
    stages: int
    registers: int | None = None


class Binary(msgspec.Struct, frozen=True):
    """Machine code and what can be read in it. entry: its function. shared: bytes of a block. registers: of a
    thread. spilled: bytes of a thread's stack. tensor: tensor-core instruction -> how often it stands there.
    waits: for the launch before it, and writes nothing before (order.py).
    """

    code: bytes
    entry: str
    shared: int
    threads: int
    registers: int
    spilled: int
    tensor: dict[str, int]
    waits: bool


class Refused(msgspec.Struct, frozen=True):
    """Why a variant is no good."""

    reason: str


@dataclass(frozen=True)
class Chip:
    """number: as Triton counts, 90 or 110."""

    number: int

    @classmethod
    def of(cls, compute_capability: str) -> "Chip":
        """compute_capability: as "11.0"."""
        return cls(int(compute_capability.replace(".", "")))

    @property
    def processors(self) -> int:
        """Multiprocessors that work is cut for."""
        return _PROCESSORS[self.number]

    def fault(self, wanted: Specialization, binary: Binary) -> str | None:
        """What forbids a binary, None if nothing does. A few rows of fp32 need no tensor core."""
        if binary.shared > SHARED_BYTES[self.number]:
            return f"{binary.shared} bytes of shared memory, {SHARED_BYTES[self.number]} on this chip"
        if binary.spilled:
            return f"{binary.spilled} bytes spilled"
        if not binary.waits:
            return "it does not wait for the launch before it, or writes before"
        many = TENSOR[self.number]
        few = FEW_ROWS | many
        hot = {
            "matmul": many,
            "persistent": many,
            "attention": many,
            "pingpong": many,
            "resident_attention": many,
            "tall": many,
            "tall_attention": many,
            "skinny": few,
            "decode_attention": few,
        }
        expected = hot.get(wanted.kernel, set())
        exact = wanted.kernel == "skinny" and dict(wanted.signature)["w"] == "*fp32"
        if not exact and expected and not expected & binary.tensor.keys():
            return f"tensor-core instructions {sorted(binary.tensor)}, one of {sorted(expected)} expected"
        return None


def compile_kernels(chip: Chip, wanted: Collection[Specialization]) -> dict[Specialization, Binary | Refused]:
    """Errors: EngineError if the compiler itself breaks down."""
    context = get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), context, initializer=_prepare) as pool:
        found = pool.map(partial(_compile, chip), wanted, chunksize=4)
        title = f"compile SM{chip.number}"
        try:
            return dict(
                zip(wanted, progress(found, desc=title, unit="kernel", total=len(wanted)), strict=True)
            )
        except BrokenProcessPool as error:
            raise EngineError(f"{title}: {error}; see what the compiler wrote, and free memory") from error


def _prepare() -> None:
    """Before any kernel is imported: this process compiles, whatever a test's own process does."""
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ["TRITON_DEFAULT_FP_FUSION"] = "1"


def _compile(chip: Chip, wanted: Specialization) -> Binary | Refused:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource, GluonJITFunction

    module = __import__(f"export.kernels.{KERNELS[wanted.kernel]}", fromlist=[wanted.kernel])
    function = getattr(module, wanted.kernel)
    kinds = dict(wanted.signature)
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(kinds.values()) if kind[0] == "*"}
    options = {"num_warps": wanted.warps, "num_stages": wanted.stages, "maxnreg": wanted.registers}
    form = GluonASTSource if isinstance(function, GluonJITFunction) else ASTSource
    source = form(function, signature=kinds, constexprs=dict(wanted.constants), attrs=aligned)
    try:
        compiled: Any = triton.compile(
            source,
            target=GPUTarget("cuda", chip.number, 32),
            options=options,
        )
    except Exception as error:  # whatever a compiler raises
        return Refused(
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
        )
    code, data = compiled.asm["cubin"], compiled.metadata
    read = _read(code, Path(triton.__file__).parent / "backends" / "nvidia" / "bin")
    binary = Binary(code, data.name, data.shared, data.num_warps * 32, *read)
    fault = chip.fault(wanted, binary)
    return Refused(fault) if fault else binary


def _read(code: bytes, tools: Path) -> tuple[int, int, dict[str, int], bool]:
    """(registers, bytes spilled, tensor-core instructions, whether it waits) of a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        usage = _output(tools / "cuobjdump", "--dump-resource-usage", file.name)
        listing = _output(tools / "nvdisasm", "--print-code", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise EngineError(f"cuobjdump: no registers found in {usage!r}")
    counts = list(_INSTRUCTIONS.findall(listing))
    tensor = {name: counts.count(name) for name in sorted(set(counts))}
    return int(found[1]), int(found[2]), tensor, written_after_waiting(listing)


def written_after_waiting(listing: str) -> bool:
    """As Binary has it; of warps that are specialized, only that some wait."""
    waits, writes = _WAITS.search(listing), _WRITES.search(listing)
    if waits is None or writes is None or _SPECIALIZED.search(listing):
        return waits is not None
    return waits.start() < writes.start()


def _output(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr
