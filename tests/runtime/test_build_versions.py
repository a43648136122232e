"""One builder for TensorRT 10.13 to 11."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from pi05_runtime.build.contract import Done, Refused
from tests.runtime.build_library import Config, NewerConfig, attempt, library


def test_older_library_is_told_what_newer_ones_assume(tmp_path: Path) -> None:
    trt = library("10.13.3.9", config := Config())
    answer = attempt(tmp_path, trt)
    assert isinstance(answer, Done)
    assert trt.flags == [1 << 1]
    assert config.calls == [("workspace", int(1.5 * 2**30)), ("clear", "TF32")]
    assert vars(config)["builder_optimization_level"] == 2
    assert vars(config)["profiling_verbosity"] == "detailed"


def test_newer_library_lacks_flags_and_takes_a_chip(tmp_path: Path) -> None:
    trt = library("11.4.1.1", config := NewerConfig())
    assert isinstance(attempt(tmp_path, trt), Done)
    assert trt.flags == [0]
    assert config.calls == [("workspace", int(1.5 * 2**30)), ("chip", "this GPU", 0, 1)]


def test_timing_cache_grows(tmp_path: Path) -> None:
    cache = tmp_path / "timing.cache"
    attempt(tmp_path, library("10.13.3.9", Config()))
    assert cache.read_bytes() == b"+measured"
    attempt(tmp_path, library("10.13.3.9", Config()))
    assert cache.read_bytes() == b"+measured+measured"
    assert {path.name for path in tmp_path.iterdir()} == {"onnx", "out", "timing.cache"}


@pytest.mark.parametrize("data", [b"other GPU", b"damaged"])
def test_timing_cache_that_is_no_good_is_replaced(
    data: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "timing.cache").write_bytes(data)
    assert isinstance(attempt(tmp_path, library("10.13.3.9", Config())), Done)
    assert (tmp_path / "timing.cache").read_bytes() == b"+measured"
    assert "is damaged, or of another version or GPU: measuring anew" in capsys.readouterr().err


@pytest.mark.parametrize("fault", ["disk", "library"])
def test_timing_cache_that_is_not_kept_loses_no_engine(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config()
    if fault == "disk":
        (tmp_path / "timing.cache").mkdir()
    else:
        config.get_timing_cache = lambda: None
    assert isinstance(attempt(tmp_path, library("10.13.3.9", config)), Done)
    assert (tmp_path / "out" / "vision.engine").read_bytes() == b"plan"
    assert "timing.cache is not kept (" in capsys.readouterr().err


def test_chip_that_the_library_does_not_build_for(tmp_path: Path) -> None:
    trt = library("11.4.1.1", NewerConfig())
    trt.ComputeCapability = SimpleNamespace(SM120="12.0")
    answer = attempt(tmp_path, trt)
    assert isinstance(answer, Refused) and answer.ends_build == "EngineError"
    assert "builds for SM120, CURRENT expected" in answer.reason
