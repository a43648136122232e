"""`pi05 serve`: a bundle for robots that speak openpi's websocket protocol."""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np

from pi05_runtime import load, load_active
from pi05_runtime.cli.commands import Commands, add_root
from pi05_runtime.errors import DeviceError, TargetError
from pi05_runtime.policy import Policy


def serve(arguments: argparse.Namespace) -> None:
    """Answers observations until a signal ends it, and then exits with 128 and its number."""
    try:
        from pi05_runtime.serve.keys import Keys
        from pi05_runtime.serve.server import PolicyServer, serve_until_told
    except ImportError as error:
        raise TargetError(
            f"serving needs websockets and msgpack ({error}); pip install 'pi05-runtime[serve]'"
        ) from error
    if not arguments.deadline_ms > 0:
        raise DeviceError(f"--deadline-ms: {arguments.deadline_ms:g} found, more than 0 expected")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("websockets").setLevel(logging.CRITICAL)  # a traceback for every stray connection
    with _policy(arguments) as policy:
        keys = Keys(policy.manifest.interface, arguments.map)
        policy.infer(_black(policy))  # what acts only once it has acted; captures are made here, too
        server = PolicyServer(policy, keys, arguments.deadline_ms)

        def ready(port: int) -> None:
            host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
            name = f"{policy.manifest.name} {policy.manifest.version}, {policy.steps} steps"
            print(f"{name}: ws://{host}:{port}", flush=True)

        number = serve_until_told(server, arguments.host, arguments.port, ready)
    sys.exit(128 + number)


def _policy(arguments: argparse.Namespace) -> Policy:
    if arguments.bundle is None:
        if arguments.target is not None or arguments.engines is not None:
            raise DeviceError("--target or --engines found without a bundle folder: name it, or neither")
        return load_active(arguments.store.root, arguments.steps)
    if arguments.target is None:
        raise DeviceError("a bundle folder found without --target: name one, for example cpu-ort")
    return load(arguments.bundle, arguments.target, arguments.steps, arguments.engines)


def _black(policy: Policy) -> dict[str, Any]:
    """An observation of nothing."""
    interface, size = policy.manifest.interface, policy.manifest.geometry.vision.image_size
    return {
        "images": {camera: np.zeros((size, size, 3), np.uint8) for camera in interface.cameras},
        "state": np.zeros(interface.state_dims),
        "prompt": policy.manifest.golden.prompt,
    }


def add_commands(commands: Commands) -> None:
    text = "answer robots that speak openpi's websocket protocol"
    sub = commands.add_parser("serve", help=text, description=text)
    sub.add_argument("bundle", type=Path, nargs="?", help="bundle folder; the active bundle if absent")
    add_root(sub)
    sub.add_argument("--target", help="of a folder: a target, for example cpu-ort")
    sub.add_argument("--engines", type=Path, help="of a folder: what `pi05 rebuild` or `pi05 tune` made")
    sub.add_argument("--steps", type=int, help="Euler steps; the manifest's default if absent")
    sub.add_argument("--host", default="127.0.0.1", help="address to listen on; no password is asked")
    sub.add_argument("--port", type=int, default=8000, help="0: a free one, which is printed")
    sub.add_argument("--deadline-ms", type=float, default=1000, help="a later answer is an error instead")
    sub.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="PART=KEY",
        help="the robot's key of a camera, or keys of the state, joined: state=KEY,KEY",
    )
    sub.set_defaults(command=serve)
