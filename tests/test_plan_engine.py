"""Kernel plans as the pipeline builds them: real machine code for chips that are not here."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from export.engine.plan import measured
from export.engine.plan.arena import Life, place
from export.engine.plan.measured import Entry
from export.engine.plan.tiles import (
    best_splits,
    matmul_tiles,
    persistent_splits,
    persistent_tiles,
    skinny_tiles,
    tall_splits,
    tall_tiles,
    tiles,
)
from export.kernels.compile import Binary, Chip, Specialization, written_after_waiting
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
ACTIONS = Specialization("skinny", (("w", "*fp32"),), (), 4, 2)
GOOD = Binary(b"", "entry", 1000, 128, 64, 0, {"HGMMA": 4}, waits=True)


@pytest.mark.parametrize(
    ("wanted", "chip", "changed", "fault"),
    [
        (MATMUL, 90, {}, None),
        (MATMUL, 110, {"tensor": {"UTCHMMA": 4}}, None),
        (MATMUL, 90, {"spilled": 8}, "8 bytes spilled"),
        (MATMUL, 90, {"shared": 233472}, "233472 bytes of shared memory, 232448 on this chip"),
        (MATMUL, 120, {"shared": 102400}, "102400 bytes of shared memory, 101376 on this chip"),
        (MATMUL, 90, {"waits": False}, "it does not wait for the launch before it, or writes before"),
        (
            MATMUL,
            90,
            {"tensor": {"HMMA": 4}},
            "tensor-core instructions ['HMMA'], one of ['HGMMA', 'QGMMA'] expected",
        ),
        (
            MATMUL,
            110,
            {"tensor": {}},
            "tensor-core instructions [], one of ['UTCHMMA', 'UTCQMMA'] expected",
        ),
        (SKINNY, 90, {"tensor": {"HMMA": 4}}, None),
        (SKINNY, 90, {"tensor": {"HGMMA": 4}}, None),
        (
            SKINNY,
            90,
            {"tensor": {}},
            "tensor-core instructions [], one of ['HGMMA', 'HMMA', 'QGMMA', 'QMMA'] expected",
        ),
        (ACTIONS, 90, {"tensor": {}}, None),
    ],
)
def test_what_forbids_a_binary(
    wanted: Specialization, chip: int, changed: dict[str, Any], fault: str | None
) -> None:
    assert Chip(chip).fault(wanted, replace(GOOD, **changed)) == fault


@pytest.mark.parametrize(
    ("target", "component", "fp8", "kernel", "instructions"),
    [
        ("sm90-plan", "prefill", 9, "matmul", {"HGMMA", "QGMMA"}),
        ("sm90-plan", "denoise", 12, "skinny", {"HMMA", "QMMA"}),
        ("sm90-plan", "vision", 0, "matmul", {"HGMMA", "QGMMA"}),
        ("sm110-plan", "prefill", 9, "matmul", {"UTCQMMA", "UTCHMMA"}),
        ("sm110-plan", "denoise", 12, "skinny", {"HMMA", "QMMA"}),
    ],
)
def test_a_component_is_built_for_a_chip_that_is_not_here(
    copied_workspace: Path, target: str, component: str, fp8: int, kernel: str, instructions: set[str]
) -> None:
    change_params(copied_workspace, targets=["cpu-ort", target])
    run_stage(copied_workspace, "export.engine.__main__", target, component)
    folder = copied_workspace / "artifacts" / "engine" / target / component
    record = json.loads((folder / "engine.json").read_text())
    assert record["file"] == f"{component}.plan" and record["layers"].get("fp8", 0) == fp8
    plan = read_plan(folder / f"{component}.plan").plan
    assert len(plan.shaped) == (1 if component == "vision" else 2)
    rows = json.loads((folder / "kernels.json").read_text())["rows"]
    used = [row for row in rows if row["refused"] is None]
    products = [row for row in used if row["kernel"] == kernel and "w fp32" not in row["operands"]]
    assert len(used) == len(plan.kernels) and products
    assert all(instructions & row["tensor"].keys() for row in products)


@pytest.mark.parametrize(
    ("listing", "waits"),
    [
        ("LDG.E R2 ; ACQBULK ; STG.E R2 ;", True),
        ("ACQBULK ;", True),
        ("LDG.E R2 ; STG.E R2 ;", False),
        ("STG.E R2 ; ACQBULK ; STG.E R2 ;", False),
        ("RED.E.ADD R2 ; ACQBULK ;", False),
        ("STS R2 ; ACQBULK ; STG.E R2 ;", True),
        ("USETMAXREG.DEALLOC 0x18 ; STG.E R2 ; ACQBULK ;", True),
        ("USETMAXREG.DEALLOC 0x18 ; STG.E R2 ;", False),
    ],
)
def test_a_kernel_writes_nothing_before_it_has_waited(listing: str, waits: bool) -> None:
    assert written_after_waiting(listing) is waits


@given(st.integers(1, 1000), st.sampled_from([256, 1152, 2048]), st.integers(1, 40), st.booleans())
def test_no_part_of_a_sum_is_empty_and_no_row_is_left_out(rows: int, n: int, steps: int, fp8: bool) -> None:
    k = steps * (128 if fp8 else 64)
    for processors in (20, 132):
        splits = best_splits(processors, rows, n, k, fp8)
        assert 1 <= splits <= steps and -(-steps // splits) * (splits - 1) < steps
    for t in matmul_tiles(rows, n, k, fp8, 0):
        rest = rows - (-(-rows // t["BM"]) - 1) * t["BM"]
        assert rest <= t["LAST"] <= t["BM"] and k % t["BK"] == 0
    splits = persistent_splits(132, rows, n, k, fp8)
    assert 1 <= splits <= steps and -(-steps // splits) * (splits - 1) < steps
    splits = tall_splits(132, n, k, fp8)
    assert steps % splits == 0
    for t in tall_tiles(rows, n, k // splits, fp8, 0):
        assert t["BK"] * splits == k and t["BM"] >= rows and n % t["BN"] == 0


@given(st.sampled_from([16, 32, 64, 72, 256]), st.integers(1, 10), st.booleans())
def test_a_tile_that_is_rotated_belongs_to_one_head(dim: int, heads: int, fp8: bool) -> None:
    n = (heads + 2) * dim
    cuts = [*matmul_tiles(500, n, 1024, fp8, dim), *persistent_tiles(500, n, 1024, fp8, dim)]
    for t in [*cuts, *tall_tiles(10, n, 1024, fp8, dim), *skinny_tiles(n, 1024, dim, 16)]:
        assert dim % t["BN"] == 0


def test_what_a_chip_was_measured_to_like_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = (Entry("matmul", rows, {"BM": 64, "BN": n}, 4, 3) for rows, n in ((100, 32), (900, 64)))
    monkeypatch.setattr(measured, "_entries", lambda chip: (few, many) if chip == 90 else ())
    choices = [tiles(4, 3, BM=64, BN=n, GROUP=8) for n in (16, 32, 64)]
    for chip, launch, rows, first in (
        (90, "matmul", 128, 1),
        (90, "matmul", 600, 2),
        (90, "skinny", 128, 0),
        (110, "matmul", 128, 0),
    ):
        ordered = measured.best_first(chip, launch, rows, choices)
        assert ordered[0] == choices[first] and set(ordered) == set(choices)
    # All rows of an action chunk are in one tile, however many they are.
    higher = [tiles(4, 3, BM=128, BN=n, GROUP=8) for n in (16, 32, 64)]
    assert measured.best_first(90, "matmul", 600, higher)[0] == higher[2]
