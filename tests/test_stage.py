"""How stages begin and end: whole results or none, one line and one exit code an error."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from export.stage import run_stage
from pi05_runtime import errors
from pi05_runtime.staging import staged, write_file


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """The folder of an earlier run."""
    path = tmp_path / "artifacts" / "result"
    path.mkdir(parents=True)
    (path / "old").write_text("old")
    return path


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_success_replaces_the_old_folder(result: Path):
    with staged(result) as folder:
        (folder / "new").write_text("new")
    assert names(result) == ["new"]
    assert names(result.parent) == ["result"]


def test_the_old_folder_is_there_until_the_new_one_is_whole(result: Path):
    with staged(result) as folder:
        (folder / "new").write_text("new")
        assert names(result) == ["old"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_failure_leaves_the_old_folder_and_nothing_partial(result: Path, error: type[BaseException]):
    with pytest.raises(error), staged(result) as folder:
        (folder / "new").write_text("new")
        raise error
    assert names(result) == ["old"]
    assert names(result.parent) == ["result"]


def test_failure_of_a_first_run_leaves_nothing(tmp_path: Path):
    with pytest.raises(ValueError), staged(tmp_path / "artifacts" / "result"):
        raise ValueError
    assert names(tmp_path / "artifacts") == []


def test_a_stage_that_is_told_to_end_leaves_nothing_half_written(tmp_path: Path, root: Path):
    code = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "from export.stage import run_stage\n"
        "from pi05_runtime.staging import staged\n"
        "def main():\n"
        "    with staged(Path('result')) as folder:\n"
        "        (folder / 'half').write_text('half')\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "run_stage(main)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment)
    assert done.returncode == 128 + signal.SIGTERM
    assert names(tmp_path) == []


def test_a_file_is_replaced_whole(tmp_path: Path):
    path = tmp_path / "metrics" / "parity.json"
    write_file(path, b"old")
    write_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["parity.json"]


def test_a_file_that_cannot_be_written_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "parity.json"
    write_file(path, b"old")

    def half(self: Path, data: bytes) -> None:
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["parity.json"]


def ended(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    """The exit code of a stage that raises `error`."""

    def main() -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["stage"])
    with pytest.raises(SystemExit) as exit:
        run_stage(main)
    return exit.value.code


KNOWN = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.Pi05Error)]


@pytest.mark.parametrize("kind", KNOWN)
def test_a_known_error_is_one_line_and_its_exit_code(
    kind: type[errors.Pi05Error], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert ended(kind("the message"), monkeypatch) == kind.exit_code
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", "error: the message\n")


def test_exit_codes_tell_known_errors_apart():
    codes = [kind.exit_code for kind in KNOWN]
    assert len(set(codes)) == len(codes)
    assert 0 not in codes


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "artifacts/graph/weights.bin"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_said_in_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert ended(error, monkeypatch) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: the disk is full: ")
    assert "No space left on device" in lines[0]
    assert lines[0].endswith("Free space, then run the stage again")


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), OSError(errno.EACCES, "Permission denied"), SafetensorError("header")]
)
def test_other_errors_keep_their_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch):
    def main() -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["stage"])
    with pytest.raises(type(error)) as caught:
        run_stage(main)
    assert caught.value is error


def test_arguments_reach_the_stage(monkeypatch: pytest.MonkeyPatch):
    found: list[str] = []
    monkeypatch.setattr(sys, "argv", ["stage", "cpu-ort", "vision"])
    run_stage(lambda *arguments: found.extend(arguments))
    assert found == ["cpu-ort", "vision"]
