"""Whatever a robot sends, it is told what is wrong, and the server goes on. docs/serve.md has the table."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

from pi05_runtime import load
from tests.pipeline import ROOT, TARGET
from tests.runtime.serve.bad_frames import BAD_FRAMES, REFUSED, BadFrame
from tests.runtime.serve.serving import STEPS, Served, decided, robot, sample


@pytest.fixture(scope="module")
def good(bundled: Path) -> dict[str, Any]:
    return sample(bundled)


@pytest.fixture(scope="module")
def expected(bundled: Path, good: dict[str, Any]) -> Any:
    with load(bundled, TARGET, STEPS) as policy:
        return policy.infer(good)["actions"]


@pytest.mark.parametrize("bad", BAD_FRAMES, ids=lambda bad: bad.name)
def test_a_bad_frame(served: Served, good: dict[str, Any], expected: Any, bad: BadFrame) -> None:
    before = len(served.lines())
    with robot(served.port) as connection:
        connection.recv()
        np.testing.assert_array_equal(decided(connection, good)["actions"], expected)
        bad.send(connection, good)
        answer = ""
        with pytest.raises(ConnectionClosed) as closed:
            answer = connection.recv(timeout=60)
            connection.recv(timeout=60)
    received = closed.value.rcvd
    assert received is not None and received.code == bad.code
    assert isinstance(answer, str) and (answer != "") == (bad.code == REFUSED)
    bad.check(answer or received.reason)
    assert "/" not in answer.replace("images/", "").replace("observation/", ""), "no path of this machine"
    with robot(served.port) as connection:
        connection.recv()
        np.testing.assert_array_equal(decided(connection, good)["actions"], expected)
    lines = served.new_lines(before)
    assert sum("refused: " in line for line in lines) == (bad.code == REFUSED), lines
    assert served.process.poll() is None


def test_the_document_lists_these_frames() -> None:
    lines = (ROOT / "docs" / "serve.md").read_text().splitlines()
    assert [line for line in lines if line.endswith("` |")] == [bad.row for bad in BAD_FRAMES]
