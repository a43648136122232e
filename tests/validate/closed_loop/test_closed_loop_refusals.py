"""What cannot be run is refused before anything is written; what cannot go on ends the run."""

import errno
import json
import re
import socket
import sys
import threading
from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path

import pytest
from msgspec.structs import replace
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve

from export.artifacts import ArtifactError
from export.stage import run_stage
from pi05_runtime.errors import BundleError, NetworkError, ObservationError, Pi05Error
from pi05_runtime.serve.wire import pack
from tests.runtime.serve.serving import HOST
from tests.validate.closed_loop.fake_policy import (
    INTERFACE,
    SIMULATOR,
    SUITE,
    FakePolicy,
    command,
    episodes,
    off_by,
    served,
)
from validate.closed_loop import records
from validate.closed_loop.parallel import Crew
from validate.closed_loop.records import ClosedLoopError, Store, read_run
from validate.closed_loop.simulator import SimulatorProcess
from validate.closed_loop.sources import Remote, identity, read_sources

NOBODY = "ws://127.0.0.1:9"


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        ([], ClosedLoopError, "no policy: give --reference, or --policy, or both"),
        (
            ["--policy", "expert", "--task", "up"],
            ClosedLoopError,
            r"--task \['up'\] found, some of left, right",
        ),
        (["--policy", "expert", "--scenes", 0], ClosedLoopError, "--scenes 0 found, 1 to 6 expected of fake"),
        (["--policy", "expert", "--scenes", 7], ClosedLoopError, "--scenes 7 found, 1 to 6 expected of fake"),
        (["--policy", "expert", "--processes", 0], ClosedLoopError, "--processes 0 found, at least 1"),
        (["--policy", "expert", "--self-test"], ClosedLoopError, "--self-test spoils the reference: give"),
        (["--policy", "expert", "--policy", "expert"], ClosedLoopError, "a name found twice"),
        (["--policy", "../x=ws://here:1"], ClosedLoopError, "one that is no file's name"),
        (["--policy", "x"], ClosedLoopError, r"NAME=PLACE, expert, or a mutant of a policy named before it"),
        (["--policy", "x+black-images"], ClosedLoopError, "a policy named before it expected"),
        (
            ["--policy", "expert", "--policy", "expert+deaf"],
            ClosedLoopError,
            r"NAME\+black-images, NAME\+wrong",
        ),
        (["--policy", "x=bundle"], ClosedLoopError, "'bundle' found, BUNDLE:TARGET, BUNDLE:TARGET:STEPS, ws"),
        (["--policy", "x=bundle:cpu-ort:many"], ClosedLoopError, "BUNDLE:TARGET:STEPS"),
        (["--policy", "x=no/bundle:cpu-ort"], BundleError, "no/bundle"),
        (["--policy", "x=pytorch"], ArtifactError, "policy.json"),
        (["--policy", f"x={NOBODY}"], NetworkError, f"{NOBODY}: no policy answers"),
        (["--policy", "x=ws://:x"], NetworkError, "no policy answers"),
        (["--policy", f"x={NOBODY}", "--processes", 2], ClosedLoopError, "1 addresses found for 2 processes"),
        (
            ["--policy", "expert", "--simulator", "no/python"],
            ClosedLoopError,
            "no/python cannot be run.*--simulator",
        ),
        (
            ["--policy", "expert", "--simulator", "/bin/true"],
            ClosedLoopError,
            "process ended at versions: status 0",
        ),
    ],
)
def test_what_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[object], error: type[Pi05Error], message: str
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        command(tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


def test_a_simulator_that_cannot_be_made_fails_no_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SIMULATOR_FAULT", "init:0")
    with pytest.raises(ClosedLoopError, match="open fake left: OSError: no display; mend its environment"):
        command(tmp_path, "--policy", "expert")
    assert episodes(tmp_path) == {}


def test_a_server_that_another_robot_uses(tmp_path: Path):
    refused = pytest.raises(NetworkError, match=r"HTTP 503.*let no other robot use it")
    with served(FakePolicy()) as address, connect(address, compression=None), refused:
        command(tmp_path / "out", "--policy", f"x={address}")
    assert not (tmp_path / "out").exists()


def test_a_policy_of_other_cameras_fails_no_episode(tmp_path: Path):
    other = FakePolicy(interface=replace(INTERFACE, cameras=("front", "rear")))
    message = r"it misses \['rear'\] and does not take \['observation/wrist'\]"
    with served(other) as address, pytest.raises(ObservationError, match=message):
        command(tmp_path, "--policy", f"x={address}")
    assert episodes(tmp_path) == {}


@pytest.mark.parametrize("with_it", [True, False])
def test_a_folder_keeps_its_reference(tmp_path: Path, with_it: bool):
    with served(FakePolicy()) as address:
        flags = ("--reference", address), ("--policy", f"other={address}")
        command(tmp_path, "--scenes", 1, *flags[with_it])
        with pytest.raises(ClosedLoopError, match="was asked for; name another folder"):
            command(tmp_path, "--scenes", 1, *flags[not with_it])


def test_another_policy_under_the_same_name(tmp_path: Path):
    with served(FakePolicy()) as address:
        command(tmp_path, "--scenes", 1, "--policy", f"x={address}", "--policy", "x+black-images")
    before = episodes(tmp_path)
    with (
        served(FakePolicy(off_by(0.1), version="2")) as address,
        pytest.raises(ClosedLoopError, match="'x' is another one here: version 1 found, 2 expected; give"),
    ):
        command(tmp_path, "--scenes", 2, "--policy", f"x={address}")
    assert episodes(tmp_path) == before


def test_another_bundle_of_the_same_name_and_version(tmp_path: Path):
    with served(FakePolicy()) as address:
        command(tmp_path, "--scenes", 1, "--policy", f"x={address}")
    refused = pytest.raises(ClosedLoopError, match=f"manifest {'0' * 64} found, {'1' * 64} expected; give")
    with served(FakePolicy(off_by(0.1), manifest="1" * 64)) as address, refused:
        command(tmp_path, "--scenes", 2, "--policy", f"x={address}")


@pytest.mark.parametrize(
    ("versions", "manifest", "message"),
    [
        ({"numpy": "1.0"}, "0" * 64, "simulator is another one there: numpy .* found, 1.0 expected"),
        (
            {"numpy": version("numpy")},
            "1" * 64,
            "policy 'x' is another one there: manifest 0.* found, 1.* exp",
        ),
    ],
)
def test_another_machine_that_has_something_else(versions: dict[str, str], manifest: str, message: str):
    with served(FakePolicy()) as address:
        sources = read_sources(None, [f"x={NOBODY},{address}", "x+black-images"])
        known = {**identity(Remote((address,)), sources, ()), "manifest": manifest}
        policies = {"x": known, "x+black-images": {"spoiled": "black-images", "policy": known}}
        crew = Crew("fake", SUITE, Path(sys.executable), sources, (), versions, policies)
        with (
            closing(SimulatorProcess(crew.python, SIMULATOR)) as simulator,
            pytest.raises(ClosedLoopError, match=f"^{re.escape(socket.gethostname())}: {message}"),
        ):
            crew.check(simulator, 1)


def test_servers_of_two_policies_under_one_name(tmp_path: Path):
    refused = pytest.raises(ClosedLoopError, match="servers of different policies found, of one expected")
    with served(FakePolicy()) as one, served(FakePolicy(version="2")) as two, refused:
        command(tmp_path / "out", "--policy", f"x={one},{two}")


@pytest.mark.parametrize(
    ("what", "changes"), [("suites", {"max_steps": 21}), ("simulators", {"numpy": "1.0"})]
)
def test_another_simulator_or_budget(tmp_path: Path, what: str, changes: dict[str, object]):
    command(tmp_path, "--scenes", 1, "--policy", "expert")
    run = json.loads((tmp_path / "run.json").read_bytes())
    run[what]["fake"] |= changes
    (tmp_path / "run.json").write_text(json.dumps(run))
    with pytest.raises(ClosedLoopError, match="'fake' is another one here"):
        command(tmp_path, "--scenes", 2, "--policy", "expert")


def test_two_commands_at_once(tmp_path: Path):
    command(tmp_path, "--scenes", 1, "--policy", "expert")
    refused = pytest.raises(ClosedLoopError, match="another command writes to it; wait for its end")
    with Store(tmp_path).held(read_run(tmp_path)), refused:
        command(tmp_path, "--scenes", 2, "--policy", "expert")


def test_episodes_of_whoever(tmp_path: Path):
    command(tmp_path, "--scenes", 1, "--policy", "expert")
    (tmp_path / "run.json").unlink()
    with pytest.raises(ClosedLoopError, match=r"episodes found without run\.json"):
        command(tmp_path, "--scenes", 1, "--policy", "expert")


def test_an_episode_that_is_damaged(tmp_path: Path):
    command(tmp_path, "--scenes", 1, "--policy", "expert")
    file = tmp_path / "episodes/fake/left/0/expert.json"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ClosedLoopError, match=r"expert\.json: .*without this file if it is damaged"):
        command(tmp_path, "--scenes", 1, "--policy", "expert")
    file.unlink()
    command(tmp_path, "--scenes", 1, "--policy", "expert")


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def full(path: Path, data: bytes) -> None:
        if path.name == "expert.json" and path.parent.name == "1":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_file(path, data)

    write_file = records.write_file
    monkeypatch.setattr(records, "write_file", full)
    monkeypatch.setattr("sys.argv", ["closed_loop"])
    with pytest.raises(SystemExit) as ended:
        run_stage(lambda: command(tmp_path, "--scenes", 2, "--policy", "expert"))
    assert ended.value.code == 1 and "error: the disk is full" in capsys.readouterr().err
    monkeypatch.undo()
    command(tmp_path, "--scenes", 2, "--policy", "expert")
    assert len(episodes(tmp_path)) == 4


def test_a_server_that_goes_away_ends_the_run(tmp_path: Path):
    def hang_up(connection: ServerConnection) -> None:
        connection.send(pack({}))
        with suppress(ConnectionClosed):
            connection.recv()

    with serve(hang_up, HOST, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"ws://{HOST}:{server.socket.getsockname()[1]}"
        with pytest.raises(NetworkError, match=r"lost during a decision.*run again to go on"):
            command(tmp_path, "--policy", f"x={address}")
        server.shutdown()
        thread.join()
    assert episodes(tmp_path) == {}
