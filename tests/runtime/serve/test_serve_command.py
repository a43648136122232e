"""`pi05 serve` as a command: what it refuses before it listens, and the active bundle."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from export.publish import prepare
from export.signing import sign
from pi05_runtime.device.slots import activate
from pi05_runtime.device.store import Store
from pi05_runtime.serve.wire import unpack
from pi05_runtime.signature import FILE as SIGNATURE
from tests.pipeline import TARGET
from tests.runtime.device.stores import put, write_keys
from tests.runtime.serve.serving import HOST, decided, pi05_serve, robot, sample

PI05 = Path(sys.executable).with_name("pi05")


def refused(*flags: object) -> tuple[int, str]:
    done = subprocess.run([str(PI05), "serve", *map(str, flags)], capture_output=True, text=True)
    assert done.stdout == "" and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        ([], 9, "no active bundle in"),
        (["--target", TARGET], 9, "found without a bundle folder"),
        (["{bundle}"], 9, "found without --target"),
        (["{bundle}", "--target", "toaster"], 6, "no target 'toaster'"),
        (["{bundle}", "--target", TARGET, "--steps", 99], 5, "no schedule for 99 steps"),
        (["{bundle}", "--target", TARGET, "--map", "rear=x"], 4, "--map 'rear=x': expected corner2 or"),
        (["{bundle}", "--target", TARGET, "--deadline-ms", 0], 9, "--deadline-ms: 0 found"),
        (["{bundle}", "--target", TARGET, "--port", 99999], 9, "cannot listen there (bind(): port must be"),
    ],
)
def test_what_is_refused(bundled: Path, tmp_path: Path, flags: list[object], code: int, message: str) -> None:
    given = [str(flag).format(bundle=bundled) for flag in flags]
    found, error = refused(*given, "--root", tmp_path)
    assert found == code and message in error


def test_a_port_that_is_taken(bundled: Path) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        code, error = refused(bundled, "--target", TARGET, "--port", port)
    assert code == 9 and f"{HOST} port {port}: cannot listen there" in error and "in use" in error


def test_the_active_bundle_needs_no_name(bundled: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    key = prepare(bundled, write_keys(store.keys, "release")).key
    id = put(store, bundled, "tested", "9.0.0")
    sign(store.bundle(id), key, store.bundle(id) / SIGNATURE)
    activate(store, id)
    with pi05_serve(tmp_path / "log", "--root", store.root) as served, robot(served.port) as connection:
        assert unpack(connection.recv())["version"] == "9.0.0"
        assert "actions" in decided(connection, sample(bundled))


def test_the_extra_is_named_where_it_is_missing(bundled: Path) -> None:
    program = "import sys; sys.modules['msgpack'] = None; from pi05_runtime import cli; cli.main()"
    command = [sys.executable, "-c", program, "serve", str(bundled), "--target", TARGET]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 6
    assert "serving needs websockets and msgpack" in done.stderr
    assert "pip install 'pi05-runtime[serve]'" in done.stderr


def test_the_command_line_loads_none_of_it() -> None:
    program = "import sys, pi05_runtime.cli; print({'websockets', 'msgpack', 'asyncio'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert found == "set()\n"
