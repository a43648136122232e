"""Reading a device: this one for real, what misbehaves on it, and a driver that is stood in for."""

import ctypes
import json
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import onnxruntime
import pytest

from pi05_runtime.doctor import Facts, facts, report
from pi05_runtime.doctor.device import Gpu
from pi05_runtime.doctor.probe import CUDA, NVML, read_gpu
from pi05_runtime.doctor.reading import read_l4t, read_memory, read_power_mode
from pi05_runtime.errors import BundleError, TargetError
from tests.runtime.bundle_edits import edited

TEGRA = (
    "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64, "
    "DATE: Fri Aug 22 00:55:42 UTC 2025\n"
)
"""As a Thor on JetPack 7.0 has it (github.com/rbonghi/jetson_stats/issues/711)."""


def test_this_device(tmp_path: Path) -> None:
    found = facts(tmp_path / "not" / "there")
    assert found.source == "read on the device"
    assert (found.machine, found.python) == (platform.machine(), platform.python_version())
    assert found.versions["onnxruntime"] == onnxruntime.__version__
    assert 0 < found.memory_free < found.memory == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert found.root == str(tmp_path)
    assert abs(found.disk_free - shutil.disk_usage(tmp_path).free) < 1e9
    assert (found.gpu is None) == ("gpu" in found.problems)
    assert {*found.versions, *found.problems} - {"gpu"} == {
        "cuda-python",
        "onnxruntime",
        "tensorrt",
        "tensorrt_rtx",
    }
    assert msgspec.json.decode(msgspec.json.encode(found), type=Facts) == found


@pytest.mark.parametrize(
    ("library", "problem"),
    [
        ("import os; os.kill(os.getpid(), 11)", "exit by signal 11"),
        ("raise RuntimeError('wrong driver')", "RuntimeError: wrong driver"),
        ("import libnvinfer_that_is_not_there", "No module named 'libnvinfer_that_is_not_there'"),
        ("", "AttributeError: module 'tensorrt' has no attribute '__version__'"),
    ],
)
def test_a_broken_library_is_a_fact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, problem: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "tensorrt.py").write_text(library)
    found = facts(tmp_path)
    assert found.problems["tensorrt"] == problem and "tensorrt" not in found.versions
    assert "onnxruntime" in found.versions


def test_a_library_may_print(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "tensorrt.py").write_text("print('hello'); __version__ = '10.13.3.9'")
    assert facts(tmp_path).versions["tensorrt"] == "10.13.3.9"


def test_a_jetsons_programs_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("nvpmodel", "NV Power Mode: 120W\n1"), ("dpkg-query", "7.1-b43")):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\nprintf '{text}'\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    found = facts(tmp_path)
    assert (found.power_mode, found.jetpack) == ("120W", "7.1-b43")
    (tmp_path / "nvpmodel").write_text("#!/bin/sh\nexit 1\n")
    assert facts(tmp_path).power_mode is None


def test_texts_of_a_jetson() -> None:
    assert read_l4t(TEGRA) == "38.2.0"
    assert read_l4t("nothing of the kind") is None
    assert read_power_mode("NVPM WARN: fan mode is not set!\nNV Power Mode: MAXN\n0\n") == "MAXN"
    assert read_power_mode("") is None
    assert read_memory("MemTotal:       128 kB\nMemAvailable:    64 kB\nHugePages_Total:       0\n") == {
        "MemTotal": 131072,
        "MemAvailable": 65536,
    }


def driver(refuses: dict[str, int], integrated: int = 0) -> Callable[[str], Any]:
    """As `ctypes.CDLL`: C functions that answer as an H100's driver would. refuses: name -> error code."""
    attributes = {18: integrated, 75: 9, 76: 0}

    def fill(pointer: Any, value: Any) -> int:
        pointer[0] = value
        return 0

    def fill_text(buffer: int, size: int, text: bytes) -> int:
        ctypes.memmove(buffer, text + b"\0", min(size, len(text) + 1))
        return 0

    c_int, c_size, c_void = ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p
    ints, sizes = ctypes.POINTER(c_int), ctypes.POINTER(c_size)
    functions: dict[str, tuple[tuple[Any, ...], Callable[..., int]]] = {
        "cuInit": ((ctypes.c_uint,), lambda flags: 0),
        "cuDeviceGet": ((ints, c_int), lambda p, ordinal: fill(p, ordinal)),
        "cuDriverGetVersion": ((ints,), lambda p: fill(p, 13020)),
        "cuDeviceGetName": ((c_void, c_int, c_int), lambda b, n, d: fill_text(b, n, b"NVIDIA H100")),
        "cuDeviceGetAttribute": ((ints, c_int, c_int), lambda p, code, d: fill(p, attributes[code])),
        "cuDevicePrimaryCtxRetain": ((ctypes.POINTER(c_void), c_int), lambda p, d: fill(p, 1 << 40)),
        "cuCtxSetCurrent": ((c_void,), lambda context: 0 if context == 1 << 40 else 201),
        "cuMemGetInfo_v2": ((sizes, sizes), lambda f, t: fill(f, 70 << 30) or fill(t, 80 << 30)),
        "cuGetErrorName": (
            (c_int, ctypes.POINTER(ctypes.c_char_p)),
            lambda code, p: fill(p, b"CUDA_ERROR_NO_DEVICE"),
        ),
        "nvmlInit_v2": ((), lambda: 0),
        "nvmlSystemGetDriverVersion": ((c_void, c_int), lambda b, n: fill_text(b, n, b"580.95.05")),
    }
    library = SimpleNamespace(
        **{
            name: ctypes.CFUNCTYPE(c_int, *types)(
                function if name not in refuses else lambda *_, code=refuses[name]: code
            )
            for name, (types, function) in functions.items()
        }
    )

    def open_library(name: str) -> Any:
        if name not in (CUDA, NVML) or name in refuses:
            raise OSError(f"{name}: cannot open shared object file")
        return library

    return open_library


@pytest.mark.parametrize("integrated", [0, 1])
def test_a_gpu_is_read_through_its_driver(integrated: int) -> None:
    assert read_gpu(driver({}, integrated)) == Gpu(
        "NVIDIA H100", "9.0", "13.2", "580.95.05", 80 << 30, 70 << 30, bool(integrated)
    )


@pytest.mark.parametrize("refuses", [{NVML: 0}, {"nvmlInit_v2": 9}, {"nvmlSystemGetDriverVersion": 3}])
def test_a_driver_version_that_nobody_tells_is_unknown(refuses: dict[str, int]) -> None:
    assert read_gpu(driver(refuses)).driver is None


@pytest.mark.parametrize(
    ("refuses", "message"),
    [
        ({CUDA: 0}, r"no NVIDIA driver: libcuda\.so\.1"),
        ({"cuInit": 100}, r"cuInit: CUDA error 100 \(CUDA_ERROR_NO_DEVICE\)"),
        ({"cuDevicePrimaryCtxRetain": 46}, "cuDevicePrimaryCtxRetain: CUDA error 46"),
    ],
)
def test_no_gpu_is_told_with_the_call(refuses: dict[str, int], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        read_gpu(driver(refuses))


def test_report_of_a_bundle(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(bundle, tmp_path, as_json=False)
    text = capsys.readouterr().out
    assert f"device   {platform.machine()}" in text and "cpu-ort      accepted" in text
    assert report(bundle, tmp_path, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["verdicts"][0] == {"verdict": "accepted", "target": "cpu-ort", "notes": []}
    assert msgspec.convert(found["facts"], Facts).root == str(tmp_path)


def test_report_of_a_bundle_that_does_not_fit(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with edited(bundle) as manifest:
        manifest["files"]["tokenizer.model"]["size"] = 10**18
    assert not report(bundle, tmp_path, as_json=False)
    text = capsys.readouterr().out
    assert "cpu-ort      refused\n    memory: " in text and "    disk: " in text
    with pytest.raises(BundleError, match="no manifest found"):
        report(tmp_path / "none", tmp_path, as_json=False)


def test_report_without_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(None, tmp_path, as_json=False)
    text = capsys.readouterr().out
    assert all(f"\n{target}" in text for target in ("cpu-ort", "sm110-trt", "sm89-rtx", "sm120-rtx"))
