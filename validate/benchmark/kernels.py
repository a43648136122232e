"""A plan's kernels, compiled where the compiler is, in a file that travels without the weights.

    python -m validate.benchmark.kernels KERNELS --target sm90-plan --profile C A10 --recipe fp8 bf16

Compiling needs Triton in the version of the target's lock and no GPU; measuring needs a GPU and no Triton of
that version. The launches follow from shapes alone, so they are described over tensors without data.
"""

import argparse
import tempfile
import zlib
from contextlib import chdir
from pathlib import Path

import msgspec

from export.engine import plan, read_lock
from export.kernels.compile import Binary, Chip, Refused, Specialization, compile_kernels
from export.stage import run_stage
from pi05_runtime.geometry import PI05, Geometry
from pi05_runtime.lock import Lock
from pi05_runtime.staging import write_file
from pi05_runtime.targets import Recipe, find_target
from validate.benchmark.profiles import PROFILES, Profile
from validate.benchmark.results import BenchmarkError
from validate.benchmark.seeded import components, describe, interface_of, quantizable, seeded_weights

NO_DATA = "meta"


class Compiled(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A variant: machine code, or why there is none."""

    wanted: Specialization
    binary: Binary | None
    refused: str | None


class KernelsFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """lock: that of the target when they were compiled."""

    target: str
    lock: Lock
    compiled: tuple[Compiled, ...]

    @property
    def kernels(self) -> dict[Specialization, Binary | Refused]:
        return {c.wanted: c.binary or Refused(c.refused or "") for c in self.compiled}


def wanted(chip: Chip, geometry: Geometry, profile: Profile, recipe: Recipe) -> list[Specialization]:
    """Every variant of every launch, each once."""
    weights = seeded_weights(geometry, NO_DATA)
    modules = components(weights, geometry, interface_of(profile, geometry), NO_DATA)
    ranges = {c: dict.fromkeys(quantizable(m), 1.0) for c, m in modules.items()}
    with tempfile.TemporaryDirectory() as folder:
        described = describe(chip, profile, geometry, recipe, modules, ranges, NO_DATA, Path(folder))
        # Still there: staging follows from the policy's description.
        with chdir(folder):
            found = [s for component, one in described.items() for s in plan.kernels_of(component, one)]
    return list(dict.fromkeys(found))


def compile_file(
    path: Path, target: str, geometry: Geometry, profiles: list[Profile], recipes: list[Recipe]
) -> KernelsFile:
    """Errors: BenchmarkError for a target that is no plan, TargetError for another Triton than the lock's,
    EngineError for a compiler that broke down."""
    chosen = find_target(target)
    if chosen.engine != "plan" or chosen.compute_capability is None:
        raise BenchmarkError(f"{target} has no kernels to compile: name a kernel plan, such as sm90-plan")
    if path.is_dir():
        raise BenchmarkError(f"{path}: a folder found, a file to write expected; name another")
    lock = read_lock(target)
    chip = Chip.of(chosen.compute_capability)
    every = dict.fromkeys(s for p in profiles for r in recipes for s in wanted(chip, geometry, p, r))
    compiled = compile_kernels(chip, every)
    entries = [
        Compiled(s, None, b.reason) if isinstance(b, Refused) else Compiled(s, b, None)
        for s, b in compiled.items()
    ]
    file = KernelsFile(target, lock, tuple(entries))
    write_file(path, pack(file))
    return file


def pack(file: KernelsFile) -> bytes:
    return zlib.compress(msgspec.msgpack.encode(file), level=9)


def read_kernels(path: Path, target: str) -> KernelsFile:
    """Errors: BenchmarkError for a file that is missing, damaged or another target's."""
    try:
        file = msgspec.msgpack.decode(zlib.decompress(path.read_bytes()), type=KernelsFile)
    except (OSError, zlib.error, msgspec.DecodeError) as error:
        raise BenchmarkError(f"{path}: {error}; compile it again (docs/benchmark.md)") from error
    if file.target != target:
        raise BenchmarkError(f"{path}: kernels of {file.target} found, {target} expected; compile its own")
    return file


def main(*arguments: str) -> None:
    parser = argparse.ArgumentParser(prog="python -m validate.benchmark.kernels")
    parser.add_argument("kernels", type=Path, help="the file to write")
    parser.add_argument("--target", required=True)
    parser.add_argument("--profile", nargs="+", choices=PROFILES, default=list(PROFILES))
    parser.add_argument("--recipe", nargs="+", choices=("fp8", "bf16"), default=["fp8", "bf16"])
    asked = parser.parse_args(arguments)
    profiles = [PROFILES[name] for name in asked.profile]
    file = compile_file(asked.kernels, asked.target, PI05, profiles, asked.recipe)
    used = sum(c.binary is not None for c in file.compiled)
    size = asked.kernels.stat().st_size / 1e6
    print(f"{asked.kernels}: {used} kernels of {len(file.compiled)} tried, {size:.1f} MB")


if __name__ == "__main__":
    run_stage(main)
