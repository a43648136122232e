"""What a driver says of a GPU's clocks, or that it does not."""

from pathlib import Path

import pytest

from validate.benchmark.clocks import capped_us


@pytest.mark.parametrize(
    ("told", "expected"), [("15562008", 15_562_008), ("0", 0), ("[N/A]", None), ("", None), (None, None)]
)
def test_time_at_the_power_limit(
    told: str | None, expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if told is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho '{told}'\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    assert capped_us() == expected


def test_a_driver_that_does_not_know_the_counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 7\nexit 2\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert capped_us() is None
