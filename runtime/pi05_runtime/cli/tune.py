"""`pi05 tune`: a kernel plan's variants measured on this device, of a pulled bundle or one in any folder."""

import argparse
from pathlib import Path

from pi05_runtime.cli.commands import Commands, add_id_or_folder, names_a_folder
from pi05_runtime.device import engines
from pi05_runtime.tuned import tune as tune_folder


def tune(arguments: argparse.Namespace) -> None:
    """Keeps the fastest variant of every launch."""
    if names_a_folder(arguments):
        out, record = arguments.out, tune_folder(Path(arguments.bundle), arguments.target, arguments.out)
    else:
        out, record = engines.tune(arguments.store, arguments.bundle)
    for name, network in record.networks.items():
        changed = sum(times[0] > min(times) for times in network.groups.values())
        print(f"{name}: {changed} of {len(network.groups)} groups of launches are faster in another variant")
    print(f"{out}: measured on {record.gpu}, saves {record.saved_ms:.3f} ms over all prompt buckets")
    if not names_a_folder(arguments):
        print(f"run `pi05 test {arguments.bundle}`")


def add_commands(commands: Commands) -> None:
    text = "measure the variants of a bundle's kernel plans on this device, and keep the fastest"
    sub = commands.add_parser("tune", help=text, description=text)
    add_id_or_folder(sub)
    sub.set_defaults(command=tune)
