"""Loads a pi0.5 bundle and acts: `pi05_runtime.load(path, target="cpu-ort").infer(observation)`.

Importing this module loads neither an engine's library nor torch; `load` brings in what the target
needs.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pi05_runtime.policy import Policy

__version__ = "0.1.0"


def load(
    path: str | Path, target: str, steps: int | None = None, engines: str | Path | None = None
) -> "Policy":
    """Verifies the bundle at `path` and loads its engines for `target`.

    steps: Euler steps of the flow, one of the manifest's `steps`; None takes its default. engines: a
    folder that `pi05 rebuild` or `pi05 tune` made of this bundle.
    Errors: BundleError for files that are not what the manifest names, TargetError for a target that
    the bundle or this machine does not have, EngineError if an engine does not load.
    """
    from pi05_runtime.policy import Policy

    return Policy.load(Path(path), target, steps, None if engines is None else Path(engines))


def load_active(root: str | Path | None = None, steps: int | None = None) -> "Policy":
    """Loads the bundle that `pi05 activate` made active, signature and hashes checked again.

    root: the folder that this device keeps bundles in; $PI05_ROOT, or ~/.local/share/pi05, if None.
    Errors: DeviceError if nothing is active, and those of `load`.
    """
    from pi05_runtime.device.active import load_active as load_active_bundle
    from pi05_runtime.device.store import default_root

    return load_active_bundle(default_root() if root is None else Path(root), steps)
