"""One command, several runs: what is known is on the disk, and a run that fails takes no other along."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from pi05_runtime.errors import EngineError, GateError, Pi05Error
from pi05_runtime.lock import Lock
from tests.validate.conftest import TINY
from tests.validate.reports import DEVICE, run
from validate.benchmark import __main__ as command
from validate.benchmark import kernels, maker
from validate.benchmark.decisions import Calls
from validate.benchmark.measure import Subject
from validate.benchmark.results import FILE, Run, read_report

NAMES = ("wrong", "good", "late")


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def subjects(*_: object) -> Iterator[tuple[Subject, None]]:
        for name in NAMES:
            yield Subject(name, name, tmp_path, "cpu-ort", "seeded"), None

    def measure(subject: Subject, steps: tuple[int, ...], calls: Calls, _: object) -> Iterator[Run]:
        if subject.name == "wrong":
            raise GateError("cosine 0.1 found")
        first = replace(run(), name=subject.name, steps=run().steps[:1])
        yield first
        partial = read_report(tmp_path / "out" / FILE)
        assert partial.runs[-1] == first and not partial.complete
        yield replace(run(), name=subject.name)

    monkeypatch.setattr(command, "read_device", lambda: DEVICE)
    monkeypatch.setattr(command, "subjects", subjects)
    monkeypatch.setattr(command, "measure", measure)
    return tmp_path / "out"


def test_a_run_that_fails_is_recorded_and_the_others_go_on(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(GateError, match=r"cosine 0\.1 found"):
        command.main(str(out), "--target", "cpu-ort", "--bundle", "any")
    said = capsys.readouterr().out
    assert "good: 1 steps" in said and "first action 2.00 s, denoise qkv x18 1.440 ms, vision norm1" in said
    found = read_report(out / FILE)
    assert [(r.name, len(r.steps)) for r in found.runs] == [("good", 2), ("late", 2)]
    assert [(r.name, r.reason) for r in found.refused] == [("wrong", "cosine 0.1 found")]
    assert not found.complete and "wrong was not timed" in (out / "benchmark.html").read_text()
    assert {peer.absent for r in found.runs for peer in r.peers} == {
        "no interpreter with LeRobot was named (--peer)"
    }
    assert sorted(path.name for path in out.iterdir()) == ["benchmark.html", FILE]


def test_after_the_time_limit_nothing_begins(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.NAMES", ("late",))
    command.main(str(out), "--target", "cpu-ort", "--bundle", "any", "--minutes", "0")
    found = read_report(out / FILE)
    assert found.runs == () and found.refused[0].reason == "the time limit of 0 minutes came first"
    assert not found.complete


def test_a_bundle_that_cannot_be_made_is_refused_and_the_others_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(self: object, out: Path, name: str, profile: object, recipe: str) -> dict[str, object]:
        if recipe == "fp8":
            raise EngineError("matmul: no variant left")
        return {}

    monkeypatch.setattr(command, "PI05", TINY)
    monkeypatch.setattr(maker.Maker, "write", write)
    file = kernels.KernelsFile("sm90-plan", Lock("triton", "3.9.0", "9.0"), ())
    monkeypatch.setattr(kernels, "read_kernels", lambda path, target: file)
    what = ("--target", "sm90-plan", "--profile", "C", "--recipe", "fp8", "bf16", "--kernels", "any")
    refused: list[tuple[str, Pi05Error]] = []
    made = command.subjects(
        command.parse((str(tmp_path), *what)), tmp_path, lambda name: False, lambda *one: refused.append(one)
    )
    assert [subject.name for subject, _ in made] == ["C bf16"]
    assert [(name, str(error)) for name, error in refused] == [("C fp8", "matmul: no variant left")]
