"""What an engine for the GPU at hand must show of itself, and what is said and recorded where it does not."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from pi05_runtime.build import worker
from pi05_runtime.build.contract import Done, Refused
from pi05_runtime.build.plain import plain
from tests.runtime.build_library import TWO, Config, attempt, library, resized
from tests.runtime.build_onnx import is_the_same_anywhere, request, write_component


def test_evidence_is_the_inspectors(tmp_path: Path) -> None:
    answer = attempt(tmp_path, trt := library("10.13.3.9", Config()))
    assert isinstance(answer, Done)
    assert (answer.evidence.source, answer.evidence.precisions) == ("inspector", {"fp8": 2})
    assert (tmp_path / "out" / "vision.engine").read_bytes() == b"plan"
    assert [(context.profile, context.shapes) for context in trt.contexts] == [(0, {})]


def test_each_profile_is_inspected_in_a_context_of_its_own(tmp_path: Path) -> None:
    answer = attempt(tmp_path, trt := library("10.16.2.10", Config(), listing=resized), profiles=TWO)
    assert isinstance(answer, Done)
    assert (answer.evidence.profiles, answer.evidence.precisions) == (2, {"fp8": 2})
    assert [(context.profile, context.shapes) for context in trt.contexts] == list(enumerate(TWO))


def test_inspector_that_follows_no_profile_is_no_evidence(tmp_path: Path) -> None:
    answer = attempt(tmp_path, library("10.16.2.10", Config()), profiles=TWO)
    assert isinstance(answer, Refused)
    assert "65536 of 131072 weights in 1 engine layers found" in answer.reason


def test_second_profile_in_another_type_is_found(tmp_path: Path) -> None:
    def listing(profile: int) -> str:
        return resized(profile).replace("FP8", "Half") if profile else resized(profile)

    answer = attempt(tmp_path, library("10.16.2.10", Config(), listing=listing), profiles=TWO)
    assert isinstance(answer, Refused)
    assert answer.reason.startswith("layer evidence: vision.a: fp16 x fp16 found, both operands fp8 ")
    assert "FP8" not in answer.detail.splitlines()[2]


@pytest.mark.parametrize(
    ("refuses", "reason"),
    [
        ("onnx", "vision (fp8): tensorrt 10.13.3.9 does not parse its ONNX: In node 3 (parser.cpp:12): "),
        ("engine", "the engine does not load on the GPU it was built for"),
        ("context", "the engine gives no context for profile 0"),
        ("profile", "the engine gives no context for profile 0"),
        ("shape", "profile 0 of the engine refuses images of shape [8, 256]"),
        ("inspector", "layer evidence: the inspector describes no layer of profile 0"),
    ],
)
def test_refusal_that_another_rung_may_change(refuses: str, reason: str, tmp_path: Path) -> None:
    folder = tmp_path / "a robot"
    answer = attempt(folder, library("10.13.3.9", Config(), refuses=refuses, listing=resized), profiles=TWO)
    assert isinstance(answer, Refused)
    assert answer.reason.startswith(reason) and is_the_same_anywhere(answer.reason)
    assert answer.ends_build is None and answer.skips_recipe == (refuses == "onnx")
    assert "robot" not in answer.reason
    assert refuses != "onnx" or str(folder / "onnx" / "bf16.onnx") in answer.detail
    assert not list((folder / "out").iterdir())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_what_the_system_refuses_ends_the_build(code: int, tmp_path: Path) -> None:
    def refuse(profile: int) -> str:
        raise OSError(code, os.strerror(code), "/home/someone/vision.engine")

    answer = attempt(tmp_path, library("10.13.3.9", Config(), listing=refuse))
    assert isinstance(answer, Refused) and answer.ends_build == "EngineError"
    assert os.strerror(code) in answer.reason and is_the_same_anywhere(answer.reason)
    assert "/home/someone" in answer.detail


def test_without_a_gpu_nothing_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On this machine, which has none: the library below could not build."""
    folder = write_component(tmp_path / "onnx", "vision", "fp8")
    monkeypatch.setattr(worker, "load_library", lambda name: SimpleNamespace())
    answer = worker.answer(request(folder, tmp_path, library="tensorrt"), [])
    assert isinstance(answer, Refused) and answer.ends_build == "TargetError"
    assert "needs an NVIDIA GPU" in answer.reason


def test_refusal_is_one_line_that_is_the_same_anywhere(tmp_path: Path) -> None:
    answer = attempt(tmp_path, library("10.13.3.9", Config(), plan=None))
    assert isinstance(answer, Refused)
    assert answer.reason == "refused: Error Code 10: no kernel (a.cpp:7) at 0x..."
    assert is_the_same_anywhere(answer.reason) and "/root/src/a.cpp:7" in answer.detail
    assert not (tmp_path / "timing.cache").exists() and not list((tmp_path / "out").iterdir())


def test_error_that_nobody_foresaw_is_the_rungs(tmp_path: Path) -> None:
    def fail(profile: int) -> str:
        raise RuntimeError("no stream\nin /opt/lib/x.so")

    assert attempt(tmp_path, library("10.13.3.9", Config(), listing=fail)) == Refused(
        "RuntimeError: no stream in x.so"
    )


@pytest.mark.parametrize(
    ("said", "recorded"),
    [
        ("in /tmp/a/b.onnx: c", "in b.onnx: c"),
        ("error:/root/src/a.cpp:7", "error:a.cpp:7"),
        ("'/dev/full' \"/x\"", "'full' \"x\""),
        ("at 0x7fFc12,\n after 12.5 ms or 3s", "at 0x..., after ... ms or ...s"),
        ("input and/or output, n/a, 1/2, a / b", "input and/or output, n/a, 1/2, a / b"),
        ("see https://docs.nvidia.com/a/b", "see https://docs.nvidia.com/a/b"),
    ],
)
def test_what_is_recorded_of_a_message(said: str, recorded: str) -> None:
    assert plain(said) == recorded
