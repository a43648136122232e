"""The ladder over workers that crash, hang, lie or are killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pi05_runtime.build import BuildOptions, Built, build_engine, ladder
from pi05_runtime.errors import EngineError, ParamsError, Pi05Error, TargetError
from tests.pipeline import ROOT
from tests.runtime.build_onnx import SIGNATURES, is_the_same_anywhere, write_component

STAND_IN = """
import os, sys, time
from pathlib import Path
from pi05_runtime.child import serve
from pi05_runtime.build.contract import Done, Refused, Request
from pi05_runtime.build.evidence import Evidence, Product

def done():
    Path(request.out, request.name + ".engine").write_text("engine")
    Path(request.out, "layers.json").write_text("layers")
    product = Product(request.name, "a", recipe, recipe, "gemm", "")
    evidence = Evidence("builder log", 1, (product,), (), ())
    return Done(evidence, 1.5, 2.5)

def crash():
    Path(request.out, request.name + ".engine").write_text("half an eng")
    os.kill(os.getpid(), 11)

def refuse(**how):
    return Refused("it refused", "in full", **how)

def answer(asked):
    global request, level, recipe
    request, level, recipe = asked, asked.optimization_level, asked.parts[0].table.recipe
    return {expression}

serve(Request, answer)
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has a worker answer with the value of an expression."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(ladder, "WORKER", "stand_in")
    return lambda expression: write_stand_in(tmp_path, expression)


def write_stand_in(folder: Path, expression: str) -> None:
    (folder / "stand_in.py").write_text(STAND_IN.replace("{expression}", expression))


def build(tmp_path: Path, *recipes: str, minutes: float = 1) -> Built:
    folders = [write_component(tmp_path / recipe, "vision", recipe) for recipe in recipes or ("fp8",)]
    options = BuildOptions(minutes, workspace_gib=1)
    return build_engine("sm120-rtx", {"vision": folders}, SIGNATURES, (4,), options, tmp_path / "out")


def left_in(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        ("crash()", "exit by signal 11"),
        ("sys.exit(3)", "exit with status 3"),
        ("refuse()", "it refused"),
        ("os._exit(0)", "an answer that cannot be read (Input data was truncated)"),
        ("time.sleep(60)", "time limit of 0.05 minutes"),
    ],
)
def test_next_rung_after(
    fault: str,
    outcome: str,
    tmp_path: Path,
    stand_in: Callable[[str], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    stand_in(f"{fault} if level == 3 else done()")
    built = build(tmp_path, minutes=0.05 if "sleep" in fault else 1)
    assert [(a.optimization_level, a.outcome) for a in built.attempts] == [(3, outcome), (2, "built")]
    assert (built.layers, built.seconds, built.peak_gb) == ({"fp8": 1}, 1.5, 2.5)
    assert left_in(tmp_path) == {"vision.engine", "layers.json"}
    assert (tmp_path / "out" / "vision.engine").read_text() == "engine"
    said = capfd.readouterr().err
    assert f"sm120-rtx vision, fp8, optimization level 3: {outcome}" in said
    assert "trying sm120-rtx vision, fp8, optimization level 2" in said
    assert is_the_same_anywhere(outcome)
    done = "fp8, optimization level 2: built in 1.5 s, peak 2.5 GB, linear layers 1 fp8"
    assert f"sm120-rtx vision, {done}\n" in said


def test_fallback_recipe_comes_after_all_levels(tmp_path: Path, stand_in: Callable[[str], None]) -> None:
    stand_in("crash() if recipe == 'nvfp4' else done()")
    built = build(tmp_path, "nvfp4", "fp8")
    assert [(a.recipes["vision"], a.optimization_level) for a in built.attempts] == [
        ("nvfp4", 3),
        ("nvfp4", 2),
        ("fp8", 3),
    ]
    assert built.recipes == {"vision": "fp8"}


def test_all_rungs_used_up(tmp_path: Path, stand_in: Callable[[str], None]) -> None:
    stand_in("crash() if level == 3 else refuse()")
    with pytest.raises(EngineError) as error:
        build(tmp_path, "nvfp4", "fp8")
    assert "no engine after 4 attempts" in str(error.value)
    for recipe in ("nvfp4", "fp8"):
        assert f"{recipe}, optimization level 3: exit by signal 11" in str(error.value)
        assert f"{recipe}, optimization level 2: it refused" in str(error.value)
    assert not left_in(tmp_path)


@pytest.mark.parametrize("kind", [EngineError, TargetError])
def test_what_no_rung_can_change_ends_at_once(
    kind: type[Pi05Error], tmp_path: Path, stand_in: Callable[[str], None], capfd: pytest.CaptureFixture[str]
) -> None:
    stand_in(f"refuse(ends_build='{kind.__name__}')")
    with pytest.raises(kind, match=r"^sm120-rtx vision: in full$"):
        build(tmp_path, "nvfp4", "fp8")
    assert not left_in(tmp_path) and not capfd.readouterr().err


def test_what_no_level_can_change_is_left_for_the_fallback(
    tmp_path: Path, stand_in: Callable[[str], None]
) -> None:
    """TensorRT 10.13 does not parse an NVFP4 graph at any level, and has no trouble with its FP8 one."""
    stand_in("refuse(skips_recipe=True) if recipe == 'nvfp4' else done()")
    built = build(tmp_path, "nvfp4", "fp8")
    assert [(a.recipes["vision"], a.outcome) for a in built.attempts] == [
        ("nvfp4", "it refused"),
        ("fp8", "built"),
    ]


def test_last_recipe_that_no_level_can_change_tells_of_all(
    tmp_path: Path, stand_in: Callable[[str], None]
) -> None:
    stand_in("refuse(skips_recipe=True) if recipe == 'fp8' else crash()")
    with pytest.raises(EngineError) as error:
        build(tmp_path, "nvfp4", "fp8")
    assert "no engine after 3 attempts" in str(error.value)
    assert "nvfp4, optimization level 2: exit by signal 11" in str(error.value)
    assert "fp8, optimization level 3: it refused" in str(error.value)


def test_a_failed_rung_leaves_nothing_to_the_next(tmp_path: Path, stand_in: Callable[[str], None]) -> None:
    left = "Path(request.out, 'left').write_text('')"
    stand_in(f"({left}, crash()) if level == 3 else done()")
    build(tmp_path)
    assert left_in(tmp_path) == {"vision.engine", "layers.json"}


def test_an_older_engine_stays_until_there_is_a_new_one(
    tmp_path: Path, stand_in: Callable[[str], None]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "vision.engine").write_text("older")
    stand_in("crash()")
    with pytest.raises(EngineError):
        build(tmp_path)
    assert (tmp_path / "out" / "vision.engine").read_text() == "older"


HANGING_LIBRARY = """
import os, subprocess, sys, time
from pathlib import Path
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
Path(os.environ["PIDS"]).write_text(f"{os.getpid()} {helper.pid} ")
if "CRASH" in os.environ:
    os.kill(os.getpid(), 11)
time.sleep(600)
"""
CALLER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores both
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from pathlib import Path
from pi05_runtime.build import BuildOptions, build_engine
from tests.runtime.build_onnx import SIGNATURES
options = BuildOptions(float(sys.argv[3]), 1)
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
build_engine("sm110-trt", {"vision": [folder]}, SIGNATURES, (4,), options, out)
"""


def start_hanging_build(tmp_path: Path, minutes: float = 5) -> tuple[subprocess.Popen[str], list[int]]:
    """(a process that waits in `build_engine`, its worker and what that started): the real worker, over a
    library that never comes back."""
    folder = write_component(tmp_path / "onnx", "vision", "bf16")
    (tmp_path / "tensorrt.py").write_text(HANGING_LIBRARY)
    pids = tmp_path / "pids"
    caller = subprocess.Popen(
        [sys.executable, "-c", CALLER, folder, tmp_path / "out", str(minutes)],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "PIDS": str(pids)},
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: pids.exists() and pids.read_text().endswith(" "))
    return caller, [int(pid) for pid in pids.read_text().split()]


def wait_until(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_build_that_is_stopped_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    caller, pids = start_hanging_build(tmp_path)
    caller.send_signal(number)
    caller.communicate(timeout=20)
    for pid in pids:
        wait_until(lambda pid=pid: is_gone(pid))
    assert not left_in(tmp_path)


def test_worker_dies_with_a_killed_parent(tmp_path: Path) -> None:
    caller, (worker, helper) = start_hanging_build(tmp_path)
    caller.kill()
    caller.wait(timeout=20)
    wait_until(lambda: is_gone(worker))
    os.kill(helper, signal.SIGKILL)  # a library's own child, which nobody is left to end
    caller.communicate(timeout=20)


def test_time_limit_ends_all_that_a_worker_started(tmp_path: Path) -> None:
    caller, pids = start_hanging_build(tmp_path, minutes=0.06)
    _, said = caller.communicate(timeout=30)
    assert "no engine after 2 attempts" in said and "time limit of 0.06 minutes" in said
    for pid in pids:
        wait_until(lambda pid=pid: is_gone(pid))
    assert not left_in(tmp_path)


def test_crash_ends_all_that_a_worker_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRASH", "1")
    caller, pids = start_hanging_build(tmp_path)
    _, said = caller.communicate(timeout=30)
    assert "no engine after 2 attempts" in said and "exit by signal 11" in said
    for pid in pids:
        wait_until(lambda pid=pid: is_gone(pid))


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_limits_are_positive(value: float) -> None:
    with pytest.raises(ParamsError, match=r"minutes .* found, a number above 0 expected"):
        BuildOptions(minutes=value, workspace_gib=1)
    with pytest.raises(ParamsError, match="workspace_gib"):
        BuildOptions(minutes=1, workspace_gib=value)
