"""Kernel plans as the pipeline builds them: real machine code for chips that are not here."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.engine.plan.arena import Life, place
from export.kernels.compile import Binary, Chip, Specialization
from pi05_runtime.plan import ALIGNMENT, read_plan
from tests.pipeline import change_params, run_stage

lives = st.lists(
    st.builds(
        lambda size, a, b: Life(size, min(a, b), max(a, b)), *(st.integers(1, n) for n in (5000, 20, 20))
    )
)


@given(lives)
def test_what_lives_at_once_shares_no_byte(given_lives: list[Life]) -> None:
    offsets, arena = place(given_lives)
    for i, one in enumerate(given_lives):
        assert offsets[i] % ALIGNMENT == 0 and offsets[i] + one.size <= arena
        for j, other in enumerate(given_lives[:i]):
            apart = offsets[i] + one.size <= offsets[j] or offsets[j] + other.size <= offsets[i]
            assert apart or not one.meets(other)


def test_what_is_no_longer_read_makes_room() -> None:
    offsets, arena = place([Life(1000, 0, 1), Life(1000, 1, 2), Life(1000, 2, 3)])
    assert offsets == [0, 1024, 0] and arena == 2024


MATMUL = Specialization("matmul", (("a", "*bf16"), ("w", "*bf16")), (), 4, 3)
SKINNY = Specialization("skinny", (("w", "*fp8e4nv"),), (), 4, 2)
SLOW = "tensor-core instructions"
ACTIONS = Specialization("skinny", (("w", "*fp32"),), (), 4, 2)


@pytest.mark.parametrize(
    ("wanted", "chip", "spilled", "shared", "tensor", "fault"),
    [
        (MATMUL, 90, 0, 1000, {"HGMMA": 4}, None),
        (MATMUL, 110, 0, 1000, {"UTCHMMA": 4}, None),
        (MATMUL, 90, 8, 1000, {"HGMMA": 4}, "8 bytes spilled"),
        (MATMUL, 90, 0, 233472, {"HGMMA": 4}, "233472 bytes of shared memory, 232448 on this chip"),
        (MATMUL, 120, 0, 102400, {"HMMA": 4}, "102400 bytes of shared memory, 101376 on this chip"),
        (
            MATMUL,
            90,
            0,
            1000,
            {"HMMA": 4},
            "tensor-core instructions ['HMMA'], one of ['HGMMA', 'QGMMA'] expected",
        ),
        (MATMUL, 110, 0, 1000, {}, "tensor-core instructions [], one of ['UTCHMMA', 'UTCQMMA'] expected"),
        (SKINNY, 90, 0, 1000, {"HMMA": 4}, None),
        (SKINNY, 90, 0, 1000, {}, "tensor-core instructions [], one of ['HMMA', 'QMMA'] expected"),
        (ACTIONS, 90, 0, 1000, {}, None),
    ],
)
def test_what_forbids_a_binary(
    wanted: Specialization, chip: int, spilled: int, shared: int, tensor: dict[str, int], fault: str | None
) -> None:
    assert Chip(chip).fault(wanted, Binary(b"", "entry", shared, 128, 64, spilled, tensor)) == fault


@pytest.mark.parametrize(
    ("target", "instructions"),
    [("sm90-plan", {"HGMMA", "QGMMA"}), ("sm110-plan", {"UTCQMMA", "UTCHMMA"})],
)
def test_a_component_is_built_for_a_chip_that_is_not_here(
    copied_workspace: Path, target: str, instructions: set[str]
) -> None:
    change_params(copied_workspace, targets=["cpu-ort", target])
    run_stage(copied_workspace, "export.engine.__main__", target, "prefill")
    folder = copied_workspace / "artifacts" / "engine" / target / "prefill"
    record = json.loads((folder / "engine.json").read_text())
    assert record["file"] == "prefill.plan" and record["layers"] == {"fp8": 9}
    plan = read_plan(folder / "prefill.plan").plan
    assert len(plan.shaped) == 2 and {len(s.launches) for s in plan.shaped} == {17}
    rows = json.loads((folder / "kernels.json").read_text())["rows"]
    used = [row for row in rows if row["refused"] is None]
    products = [row for row in used if row["kernel"] == "matmul"]
    assert len(used) == len(plan.kernels) and products
    assert all(instructions & row["tensor"].keys() for row in products)
