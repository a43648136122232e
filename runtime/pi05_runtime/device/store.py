"""The folder in which a device keeps bundles: every file once, and a bundle as links to its files."""

import fcntl
import os
import shutil
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from pi05_runtime.errors import BundleError, DeviceError
from pi05_runtime.manifest import File
from pi05_runtime.staging import sync, write_file
from pi05_runtime.verify import hash_file

RESERVE_BYTES = 64 << 20
"""Disk that a pull leaves free: logs and records of a running robot need some."""

ROOT = "PI05_ROOT"
"""Environment variable that names a device's folder."""

State = Literal["pulled", "verified", "tested"]
STATES: tuple[State, ...] = ("pulled", "verified", "tested")


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """records/<id>.json. commit: of the repository, in full. revision: what was asked for. target: what the
    bundle was pulled for. engines: folder in `engines/` of those that this device built for it,
    None where the bundle's own are used."""

    id: str
    name: str
    version: str
    repo: str
    commit: str
    revision: str
    target: str
    state: State
    engines: str | None = None

    def at(self, state: State) -> "Record":
        """The same bundle in another state."""
        return msgspec.structs.replace(self, state=state)


def default_root() -> Path:
    """Where a device keeps bundles unless told otherwise."""
    return Path(os.environ.get(ROOT, Path.home() / ".local" / "share" / "pi05"))


class Store:
    """Bundles below one folder. What writes files or records holds `working`; what writes which bundle is
    active, `switching`: a robot can be rolled back while a download takes its time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.keys, self.objects, self.records = root / "keys", root / "objects", root / "records"
        self.bundles, self.engines = root / "bundles", root / "engines"
        self.slots = root / "slots.json"

    @contextmanager
    def working(self) -> Generator[None]:
        """Waits for other processes that work on files, then keeps them out, until the block ends."""
        with self._locked("working.lock"):
            yield

    @contextmanager
    def switching(self) -> Generator[None]:
        """As `working`, of the slots. Where both are held, `working` is taken first."""
        with self._locked("switching.lock"):
            yield

    @contextmanager
    def _locked(self, name: str) -> Generator[None]:
        """The kernel lets go when this process dies."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / name).open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for another process, which has {self.root / name}", file=sys.stderr)
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def bundle(self, id: str) -> Path:
        return self.bundles / id

    def own_engines(self, record: Record) -> Path | None:
        """The engines that this device built for a bundle, if it did."""
        return None if record.engines is None else self.engines / record.engines

    def object(self, sha256: str) -> Path:
        return self.objects / sha256

    def has(self, file: File) -> bool:
        """Whether a file is here, every byte of it: a damaged one is thrown away."""
        path = self.object(file.sha256)
        if not path.is_file():
            return False
        if hash_file(path) != file:
            path.unlink()
            return False
        return True

    def require_space(self, size: int) -> None:
        """Errors: DeviceError unless `size` bytes and the reserve are free."""
        self.root.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(self.root).free) < size + RESERVE_BYTES:
            raise DeviceError(
                f"{self.root}: {free / 1e6:.0f} MB free, {(size + RESERVE_BYTES) / 1e6:.0f} MB expected; run "
                "`pi05 gc`, or free some space, then pull again"
            )

    def adopt(self, path: Path, file: File) -> None:
        """Makes the download at `path` the object it should be. Errors: BundleError if it is not, after
        which `path` is gone."""
        if (found := hash_file(path)) != file:
            path.unlink()
            raise BundleError(
                f"{found.size} bytes with sha256 {found.sha256} arrived, {file.size} with {file.sha256} "
                "expected: damaged on its way"
            )
        path.chmod(0o444)
        sync(path)
        path.rename(self.object(file.sha256))
        sync(self.objects)

    def assemble(self, id: str, files: Mapping[str, File], extra: Mapping[str, bytes]) -> None:
        """A bundle of links to objects, and of the small files `extra`. What is there already stays.

        On return all of it is on the disk, so that a record or a slot that names it can follow.
        """
        folder = self.bundle(id)
        for name, file in files.items():
            place, source = folder / name, self.object(file.sha256)
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.exists() and not place.samefile(source):
                place.unlink()
            if not place.exists():
                os.link(source, place)
        for name, data in extra.items():
            if not (place := folder / name).is_file() or place.read_bytes() != data:
                write_file(place, data)
        for path in (self.bundles, folder, *folder.rglob("*")):
            if path.is_dir():
                sync(path)

    def record(self, id: str) -> Record:
        """Errors: DeviceError if there is no such bundle, or its record is damaged."""
        path = self.records / f"{id}.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=Record)
        except FileNotFoundError:
            known = sorted(found.stem for found in self.records.glob("*.json"))
            raise DeviceError(f"no bundle {id!r} on this device, it has {known}; pull it first") from None
        except (OSError, msgspec.DecodeError) as error:
            raise DeviceError(f"{path}: {error}; pull the bundle again") from error

    def write_record(self, record: Record) -> None:
        write_file(self.records / f"{record.id}.json", msgspec.json.encode(record))

    def all_records(self) -> list[Record]:
        return [self.record(path.stem) for path in sorted(self.records.glob("*.json"))]
