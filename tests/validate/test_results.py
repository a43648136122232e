"""Statistics by hand, and a file that comes back as it went, with the keys of the table it started from."""

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.validate.reports import report, steps
from validate.benchmark.results import FILE, OVERLAPPED, BenchmarkError, read_report, summarize, write_report


def test_a_hundred_and_one_samples() -> None:
    timing = summarize([float(ms) for ms in range(200, 99, -1)], warm_up=7)
    assert (timing.median_ms, timing.p90_ms, timing.p99_ms, timing.min_ms) == (150, 190, 199, 100)
    assert (timing.jitter_ms, timing.jitter_ratio) == (49, pytest.approx(199 / 150))
    assert (timing.warm_up, timing.repeats, timing.hz) == (7, 101, pytest.approx(1000 / 150))


@pytest.mark.parametrize("samples", [[], [1.0, float("nan")], [1.0, 0.0], [float("inf")]])
def test_what_is_no_time_is_refused(samples: list[float]) -> None:
    with pytest.raises(BenchmarkError, match="positive finite times expected"):
        summarize(samples, 0)


def test_the_file_comes_back(tmp_path: Path) -> None:
    write_report(tmp_path, report())
    assert read_report(tmp_path / FILE) == report()
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_the_file_has_the_keys_of_the_seed(tmp_path: Path) -> None:
    write_report(tmp_path, report())
    seed = json.loads((tmp_path / FILE).read_bytes())["runs"][0]["seed"]
    assert seed.keys() == {"1_steps", "10_steps"}
    assert seed["10_steps"] == {
        "e2e_total_ms": pytest.approx(5.5495),
        "vision_ms": 0.5,
        "kv_cache_ms": 2.0,
        "denoise_ms": 2.5,
        "hz": pytest.approx(1000 / 5.5495),
    }


def test_a_file_of_another_schema_or_none_is_refused(tmp_path: Path) -> None:
    write_report(tmp_path, replace(report(), schema=0))
    with pytest.raises(BenchmarkError, match="schema 0 found, 1 expected"):
        read_report(tmp_path / FILE)
    (tmp_path / FILE).write_text("{}")
    with pytest.raises(BenchmarkError, match="missing required field"):
        read_report(tmp_path / FILE)


def test_a_step_beside_prefill_adds_what_that_takes_longer() -> None:
    assert steps(1).parts == {"vision": 0.5, "prefill": 2.0, "denoise": 0.25}
    assert steps(1).added == {"vision": 0.5, "prefill": 2.0, "denoise": 0.125}
    assert steps(10).added["denoise"] == pytest.approx(0.125 + 9 * 0.25)
    apart = {name: t for name, t in steps(10).alone.items() if name != OVERLAPPED}
    assert replace(steps(10), alone=apart).added["denoise"] == 2.5
