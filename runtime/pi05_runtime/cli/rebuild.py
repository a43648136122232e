"""`pi05 rebuild`: engines built again for this machine, of a pulled bundle or of one in any folder."""

import argparse
from pathlib import Path

from pi05_runtime.build import BuildOptions
from pi05_runtime.cli.commands import Commands, add_root, engine_lines
from pi05_runtime.device import engines
from pi05_runtime.errors import DeviceError
from pi05_runtime.rebuild import reason_to_rebuild
from pi05_runtime.rebuild import rebuild as rebuild_engines
from pi05_runtime.rebuilt import Rebuilt


def rebuild(arguments: argparse.Namespace) -> None:
    """Builds the engines again where the bundle's own do not fit this machine, and gates them."""
    if (arguments.target is None) != (arguments.out is None):
        raise DeviceError(
            "one of --target and --out found, both expected for a folder, and neither for a pulled bundle"
        )
    if arguments.target is None:
        _of_a_pulled_bundle(arguments)
    else:
        _of_a_folder(arguments)


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
    sub.add_argument("bundle", help="id of `pi05 status`; or a bundle folder, with --target and --out")
    add_root(sub)
    sub.add_argument("--target", help="of a folder: the target to build for")
    sub.add_argument("--out", type=Path, help="of a folder: where the engines go")
    sub.add_argument("--minutes", type=float, default=60, help="time limit of one attempt")
    sub.add_argument("--workspace", type=float, default=8, metavar="GIB", help="TensorRT's workspace")
    sub.set_defaults(command=rebuild)
