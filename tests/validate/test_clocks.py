"""What a driver says of a GPU's clocks, or that it does not."""

from pathlib import Path

import pytest

from tests.validate.conftest import BUS
from validate.benchmark import clocks
from validate.benchmark.clocks import PowerLimit

ASKED = f"--id={BUS} --query-gpu={clocks.COUNTER} --format=csv,noheader,nounits"


class Clock:
    def __init__(self, *times: float) -> None:
        self.times = iter(times)

    def perf_counter(self) -> float:
        return next(self.times)


def share(told: tuple[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> float | None:
    """Of four seconds, in which the driver says first the one and then the other."""
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(clocks, "time", Clock(100, 104))
    asked = folder / "nvidia-smi"
    for last, answer in enumerate(told):
        asked.write_text(f'#!/bin/sh\n[ "$*" = "{ASKED}" ] || exit 2\n{answer}\n')
        asked.chmod(0o755)
        if not last:
            limit = PowerLimit(BUS)
    return limit.share()


def test_time_at_the_power_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert share(("echo 15000000", "echo 18000000"), tmp_path, monkeypatch) == pytest.approx(0.75)


@pytest.mark.parametrize("unknown", ["echo '[N/A]'", "echo", "echo 7; exit 2"])
def test_a_driver_that_does_not_count(unknown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert share((unknown, "echo 1"), tmp_path, monkeypatch) is None
    assert share(("echo 1", unknown), tmp_path, monkeypatch) is None


def test_no_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert PowerLimit(BUS).share() is None


def test_a_driver_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clocks, "PATIENCE_S", 0.1)
    assert share(("exec /bin/sleep 60", "echo 1"), tmp_path, monkeypatch) is None
