"""A policy as it is loaded: where the time goes, and what it takes of disk and GPU.

The runtime times nothing of this: whatever `Policy.load` does before it calls `open` is verification. The
GPU's context is opened first, so that its time and memory are seen apart.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pi05_runtime.engines.driver import CudaDevice
from pi05_runtime.manifest import shared_files
from pi05_runtime.policy import Policy
from pi05_runtime.targets import find_target
from validate.benchmark.inputs import engine_files
from validate.benchmark.results import Loading


@dataclass
class Load:
    """What is known while a policy is loaded and after. free: bytes of the GPU before it."""

    seconds: dict[str, float] = field(default_factory=dict)
    device: CudaDevice | None = None
    free: int = 0

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[part] = time.perf_counter() - start


@contextmanager
def load_policy(bundle: Path, target: str, engines: Path | None) -> Iterator[tuple[Policy, Load]]:
    """As `pi05_runtime.load`, whose errors it raises."""
    load = Load()

    class Timed(Policy):
        @classmethod
        def open(cls, *arguments: Any, **named: Any) -> Policy:
            load.seconds["verify"] = time.perf_counter() - start
            with load.timed("open"):
                return super().open(*arguments, **named)

    with ExitStack() as held:
        if find_target(target).compute_capability is not None:
            with load.timed("device"):
                load.device = held.enter_context(closing(CudaDevice()))
            load.free = load.device.free_memory()
        start = time.perf_counter()
        yield held.enter_context(Timed.load(bundle, target, engines=engines)), load


def describe(policy: Policy, load: Load, bundle: Path, target: str, engines: Path | None) -> Loading:
    """With the memory that the policy uses by now: call it after the first decision."""
    manifest = policy.manifest
    folder, entries = engine_files(bundle, manifest, target, engines)
    sizes = {network: (folder / entry.file).stat().st_size for network, entry in entries.items()}
    shared = sum(manifest.files[name].size for name in shared_files(manifest))
    return Loading(
        parts_s=load.seconds,
        verified_bytes=sum(sizes.values()) + shared,
        engine_bytes=sizes,
        gpu_bytes=load.free - load.device.free_memory() if load.device else None,
    )
