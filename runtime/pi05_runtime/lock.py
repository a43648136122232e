"""Locks: the exact library and chip that a target's engines are built with, and run with.

A TensorRT engine belongs to one four-part version and one compute capability; anything else is refused
here, with both values, before a builder or a runtime gets to say it in its own words.
"""

import msgspec

from pi05_runtime.engines.library import load_library
from pi05_runtime.errors import TargetError
from pi05_runtime.targets import Library, find_target


class Lock(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """library: a Python module, at exactly `version`. compute_capability: of the GPU, None for a CPU."""

    library: Library
    version: str
    compute_capability: str | None


def check_library(target: str, lock: Lock, advice: str) -> None:
    """advice: what to do about another version.

    Errors: TargetError if this machine has another version of the target's library, or none, or if the lock
    is not of this target's library and chip.
    """
    wanted = find_target(target)
    expected, found = (wanted.library, wanted.compute_capability), (lock.library, lock.compute_capability)
    if found != expected:
        raise TargetError(f"the lock of {target} is of {found}, {expected} expected: correct the lock")
    if (version := installed_version(lock.library)) != lock.version:
        raise TargetError(
            f"{target} is locked to {lock.library} {lock.version}, this machine has {version}: {advice}"
        )


def check_device(target: str) -> None:
    """Errors: TargetError unless this machine has the target's GPU, or the target needs none."""
    wanted = find_target(target).compute_capability
    if wanted is not None and (found := device_capability()) != wanted:
        raise TargetError(
            f"{target} needs a GPU of compute capability {wanted}, this machine has {found or 'no GPU'}: "
            "choose the target of this device, or go to one that has it"
        )


def check_runtime(target: str, lock: Lock) -> None:
    """Whether engines built under `lock` can run here. ONNX Runtime compiles anew in any version, and a
    kernel plan is machine code.

    Errors: TargetError.
    """
    check_device(target)
    if find_target(target).from_onnx:
        check_library(target, lock, "run `pi05 rebuild`")


def installed_version(library: Library) -> str:
    """The version of a library as it states it itself. Errors: TargetError if it does not import."""
    return str(load_library(library).__version__)


def device_capability() -> str | None:
    """The compute capability of this machine's GPU, for example "11.0"; None without GPU or driver."""
    from pi05_runtime.engines.driver import compute_capability

    return compute_capability()
