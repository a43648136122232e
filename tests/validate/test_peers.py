"""A peer is another process, which may be missing, fail, hang or be another policy: then it has no ratio."""

import sys
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from pi05_runtime import golden
from pi05_runtime.manifest import read_manifest
from tests.validate.conftest import STEPS
from tests.validate.reports import run, steps
from validate.benchmark.decisions import Calls
from validate.benchmark.measure import Subject
from validate.benchmark.peers import COMPILED, EAGER, Setting, measure_peers, rated
from validate.benchmark.results import Peer, Run

CALLS = Calls(1, 3)


@pytest.fixture
def measured() -> Run:
    return replace(run(), steps=tuple(steps(n) for n in STEPS))


def program(folder: Path, body: str) -> Path:
    """An interpreter that does what a test says instead of running LeRobot."""
    path = folder / "python"
    path.write_text(f"#!{sys.executable}\nimport json, sys, time\nfrom pathlib import Path\n{body}")
    path.chmod(0o755)
    return path


def setting(python: Path, checkpoint: Path | None, minutes: float = 1) -> Setting:
    return Setting(python, checkpoint, "cpu", minutes, STEPS, "default")


def peers(measured: Run, subject: Subject, chosen: Setting | None, minutes: float = 1) -> tuple[Peer, ...]:
    return rated(measure_peers(measured, subject, chosen, CALLS, lambda: minutes), measured)


def answering(factor: float, subject: Subject, after: str = "") -> str:
    """Answers with the reference's actions times `factor`. after: what it does then."""
    manifest = read_manifest(subject.bundle)
    _, expected = golden.observation(subject.bundle, manifest.golden.file, manifest.golden.prompt)
    rows = {f"actions.{n}": (factor * expected[n]).tolist() for n in STEPS}
    return f"""
import numpy as np
from safetensors.numpy import save_file
request = json.loads(Path(sys.argv[3]).read_text())
assert sys.argv[1] == "-P" and request["steps"] == {list(STEPS)} and request["repeats"] == 3
rows = {rows!r}
save_file({{n: np.asarray(r, np.float32) for n, r in rows.items()}}, request["actions"])
answer = {{"samples": {{"1": [660.0] * 3}}, "prepared": {{"1": 2.5}}, "versions": {{"lerobot": "x"}}}}
Path(sys.argv[4]).write_text(json.dumps(answer))
{after}
"""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    return path


def test_a_peer_that_agrees_has_a_ratio(
    measured: Run, subject: Subject, tmp_path: Path, checkpoint: Path
) -> None:
    chosen = setting(program(tmp_path, answering(1, subject)), checkpoint)
    eager, compiled = peers(measured, subject, chosen)
    assert (eager.name, compiled.name) == (EAGER, f"{COMPILED} (default)")
    assert eager.absent is None and eager.agrees and eager.cosine[1] == pytest.approx(1)
    assert eager.ratio == {1: pytest.approx(660 / measured.steps[0].total.median_ms)}


def test_a_peer_that_was_stopped_keeps_what_it_had(
    measured: Run, subject: Subject, tmp_path: Path, checkpoint: Path
) -> None:
    both = replace(measured, steps=(steps(1), steps(10)))
    body = answering(1, subject, "sys.exit('out of memory')").replace("== [1]", "== [1, 10]")
    eager, _ = peers(both, subject, setting(program(tmp_path, body), checkpoint))
    assert eager.absent is None and eager.ratio.keys() == {1}
    assert eager.cut == "it ended with 1: out of memory"


def test_a_peer_that_is_another_policy_has_none(
    measured: Run, subject: Subject, tmp_path: Path, checkpoint: Path
) -> None:
    chosen = setting(program(tmp_path, answering(-1, subject)), checkpoint)
    for peer in peers(measured, subject, chosen):
        assert peer.absent is None and not peer.agrees and peer.ratio == {} and peer.timings


@pytest.mark.parametrize(
    ("body", "minutes", "reason"),
    [
        ("sys.exit('lerobot is not installed')", 1, "it ended with 1: lerobot is not installed"),
        ("time.sleep(60)", 0.005, "it was stopped after 0.0 minutes"),
        ("pass", 1, "it gave no answer"),
    ],
)
def test_a_peer_that_fails_is_absent_and_says_why(
    measured: Run, subject: Subject, tmp_path: Path, checkpoint: Path, body: str, minutes: float, reason: str
) -> None:
    chosen = setting(program(tmp_path, body), checkpoint, minutes)
    for peer in peers(measured, subject, chosen):
        assert peer.absent == reason and peer.ratio == {}


def test_a_peer_that_was_not_named_is_absent(measured: Run, subject: Subject, tmp_path: Path) -> None:
    assert {p.absent for p in peers(measured, subject, None)} == {
        "no interpreter with LeRobot was named (--peer)"
    }
    nothing = setting(tmp_path / "python", None)
    assert "--checkpoint" in str(peers(measured, subject, nothing)[0].absent)
    gone = setting(tmp_path / "python", tmp_path / "gone.safetensors")
    assert "is not there" in str(peers(measured, subject, gone)[0].absent)


def test_an_interpreter_that_is_not_there_is_said(
    measured: Run, subject: Subject, tmp_path: Path, checkpoint: Path
) -> None:
    chosen = setting(tmp_path / "no-python", checkpoint)
    assert "does not start" in str(peers(measured, subject, chosen)[0].absent)


def test_the_golden_actions_are_worth_agreeing_with(subject: Subject) -> None:
    manifest = read_manifest(subject.bundle)
    _, expected = golden.observation(subject.bundle, manifest.golden.file, manifest.golden.prompt)
    assert np.std(expected[1]) > 0.1
