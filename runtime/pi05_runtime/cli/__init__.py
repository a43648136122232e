"""The `pi05` command: what a person or a fleet does with bundles on a device."""

import argparse
import sys

from pi05_runtime.cli import bundle, device, rebuild, serve, tune
from pi05_runtime.errors import Pi05Error
from pi05_runtime.signals import ended_by_signals


def main() -> None:
    """Entry point. Exit code 0, or the `exit_code` of the error (errors.py)."""
    parser = argparse.ArgumentParser(prog="pi05", description="Pull, check, test and run pi0.5 bundles.")
    commands = parser.add_subparsers(required=True, metavar="command")
    bundle.add_commands(commands)
    device.add_commands(commands)
    rebuild.add_commands(commands)
    tune.add_commands(commands)
    serve.add_commands(commands)
    arguments = parser.parse_args()
    try:
        with ended_by_signals():
            arguments.command(arguments)
    except Pi05Error as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        print(f"error: {error}: check permissions and free space, then try again", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
