"""`pi05 rebuild`: engines built again for this machine, of a pulled bundle or of one in any folder."""

import argparse
from pathlib import Path

from pi05_runtime.build import BuildOptions
from pi05_runtime.cli.commands import Commands, add_id_or_folder, engine_lines, names_a_folder
from pi05_runtime.device import engines
from pi05_runtime.rebuild import reason_to_rebuild
from pi05_runtime.rebuild import rebuild as rebuild_engines
from pi05_runtime.rebuilt import Rebuilt


def rebuild(arguments: argparse.Namespace) -> None:
    """Builds the engines again where the bundle's own do not fit this machine, and gates them."""
    if names_a_folder(arguments):
        _of_a_folder(arguments)
    else:
        _of_a_pulled_bundle(arguments)


def _of_a_pulled_bundle(arguments: argparse.Namespace) -> None:
    store, id = arguments.store, arguments.bundle
    if (reason := engines.reason(store, id)) is None:
        print(f"nothing to rebuild: the engines of {id} pass their self-test here")
        return
    print(f"rebuilding {id}: {reason}")
    folder, record = engines.rebuild(store, id, BuildOptions(arguments.minutes, arguments.workspace))
    _print(folder, record)
    print(f"run `pi05 test {id}`")


def _of_a_folder(arguments: argparse.Namespace) -> None:
    bundle, target, out = Path(arguments.bundle), arguments.target, arguments.out
    if (reason := reason_to_rebuild(bundle, target)) is None:
        print(f"nothing to rebuild: the bundle's own engines for {target} pass their self-test here")
        return
    print(f"rebuilding {target}: {reason}")
    options = BuildOptions(arguments.minutes, arguments.workspace, str(out.parent / f"{target}.timing"))
    _print(out, rebuild_engines(bundle, target, out, options))


def _print(folder: Path, record: Rebuilt) -> None:
    print("\n".join(engine_lines(record.engines)))
    for score in record.golden:
        print(f"{score.steps:>3} steps  cosine {score.cosine:.6f} >= {score.threshold}")
    print(f"{folder}: engines for {record.target}, built with {record.lock.library} {record.lock.version}")


def add_commands(commands: Commands) -> None:
    text = "build a bundle's engines again, for this machine's TensorRT"
    sub = commands.add_parser("rebuild", help=text, description=text)
    add_id_or_folder(sub)
    sub.add_argument("--minutes", type=float, default=60, help="time limit of one attempt")
    sub.add_argument("--workspace", type=float, default=8, metavar="GIB", help="TensorRT's workspace")
    sub.set_defaults(command=rebuild)
