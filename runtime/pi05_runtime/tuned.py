"""The record of what a device measured: which variants of a kernel plan's launches are fastest on it."""

from contextlib import ExitStack, closing
from pathlib import Path

import msgspec

from pi05_runtime.engines.driver import CudaDevice
from pi05_runtime.engines.plan import PlanProgram
from pi05_runtime.engines.tuning import Network
from pi05_runtime.engines.tuning import tune as measure
from pi05_runtime.errors import BundleError, TargetError
from pi05_runtime.geometry import signatures
from pi05_runtime.lock import check_device
from pi05_runtime.manifest import read_manifest
from pi05_runtime.rebuilt import manifest_sha256
from pi05_runtime.staging import staged
from pi05_runtime.targets import find_target
from pi05_runtime.verify import target_files, verify

RECORD = "tuned.json"
AGAIN = "run `pi05 tune` again"


class Tuned(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """tuned.json. bundle: sha256 of its manifest. gpu: what was measured on."""

    bundle: str
    target: str
    gpu: str
    networks: dict[str, Network]

    @property
    def choices(self) -> dict[str, dict[str, int]]:
        """Network -> group -> the fastest variant."""
        return {
            name: {group: times.index(min(times)) for group, times in network.groups.items()}
            for name, network in self.networks.items()
        }

    @property
    def saved_ms(self) -> float:
        """What the fastest variants take less than the first ones."""
        return sum(network.before - network.after for network in self.networks.values())


def tune(bundle: Path, target: str, out: Path) -> Tuned:
    """Measures on this device and writes the folder `out`, which `pi05_runtime.load` takes as `engines`.

    Errors: TargetError for a target that is no kernel plan or another device's, BundleError for a damaged
    bundle, EngineError.
    """
    if find_target(target).engine != "plan":
        raise TargetError(f"{target} has no variants to measure: only kernel plans do")
    check_device(target)
    manifest = read_manifest(bundle)
    entry = target_files(manifest, target)
    verify(bundle, manifest.files, entry.files)
    interface = manifest.interface
    ports = signatures(manifest.geometry, len(interface.cameras), interface.horizon)
    files = {network: bundle / engine.file for network, engine in entry.engines.items()}
    with ExitStack() as opened:
        device = opened.enter_context(closing(CudaDevice()))
        program = opened.enter_context(closing(PlanProgram(files, ports, device)))
        networks = measure(device, program, ports)
        gpu = device.name
    record = Tuned(manifest_sha256(bundle), target, gpu, networks)
    with staged(out) as folder:
        (folder / RECORD).write_bytes(msgspec.json.format(msgspec.json.encode(record)) + b"\n")
    return record


def read_tuned(folder: Path, bundle: Path, target: str) -> Tuned:
    """Errors: BundleError for a damaged record, or one of another bundle or target."""
    path = folder / RECORD
    try:
        record = msgspec.json.decode(path.read_bytes(), type=Tuned)
    except (OSError, msgspec.DecodeError) as error:
        raise BundleError(f"{path}: {error}; {AGAIN}") from error
    for what, found, expected in (
        ("target", record.target, target),
        ("the bundle with manifest", record.bundle, manifest_sha256(bundle)),
    ):
        if found != expected:
            raise BundleError(f"{path}: {what} {found} found, {expected} expected; {AGAIN}")
    return record
