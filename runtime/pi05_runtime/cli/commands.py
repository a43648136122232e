"""What the modules of commands share: argparse's type for what commands are added to, which it does not name
in public, how a device's folder and a bundle are named, and how an engine is told of."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from pi05_runtime.device.store import ROOT, Store, default_root
from pi05_runtime.errors import DeviceError
from pi05_runtime.manifest import EngineFile


class Commands(Protocol):
    def add_parser(self, name: str, *, help: str, description: str) -> argparse.ArgumentParser: ...


def add_root(parser: argparse.ArgumentParser) -> None:
    """The device's folder, as `store`."""
    parser.add_argument("--root", dest="store", type=_store, default=str(default_root()), help=f"or ${ROOT}")


def add_id_or_folder(parser: argparse.ArgumentParser) -> None:
    """A pulled bundle, or one in any folder; `names_a_folder` tells which."""
    parser.add_argument("bundle", help="id of `pi05 status`; or a bundle folder, with --target and --out")
    add_root(parser)
    parser.add_argument("--target", help="of a folder: a target")
    parser.add_argument("--out", type=Path, help="of a folder: where the result goes, a folder too")


def names_a_folder(arguments: argparse.Namespace) -> bool:
    """Errors: DeviceError for something in between."""
    if (arguments.target is None) != (arguments.out is None):
        raise DeviceError(
            "one of --target and --out found, both expected for a folder, and neither for a pulled bundle"
        )
    return arguments.target is not None


def _store(root: str) -> Store:
    return Store(Path(root))


def engine_lines(engines: Mapping[str, EngineFile]) -> list[str]:
    """What each engine is, and what its builder went through."""
    lines: list[str] = []
    for network, engine in engines.items():
        layers = ", ".join(f"{count} {name}" for name, count in sorted(engine.layers.items()))
        recipes = ", ".join(engine.recipes.values())
        lines.append(f"engine   {network}: {recipes}" + (f"; linear layers {layers}" if layers else ""))
        lines += [f"           level {a.optimization_level}: {a.outcome}" for a in engine.attempts]
    return lines
