"""Recorded observations: the demo's splits, damaged folders, and the hash of a set."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export.observations import Observations, check_disjoint
from export.params import ObservationParams, load_params
from pi05_runtime.errors import ObservationError
from tests.pipeline import change_params, copy_observations, run_stage

Records = list[dict[str, Any]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One observation of each task and split of the demo."""
    copy_observations(tmp_path / "observations")
    return tmp_path / "observations"


def split(folder: Path, name: str = "calibration") -> Observations:
    return Observations(ObservationParams(str(folder), name))


def read_records(folder: Path) -> Records:
    return [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]


def write_records(folder: Path, records: Records) -> None:
    (folder / "index.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.parametrize(("name", "count"), [("calibration", 80), ("heldout", 32)])
def test_the_demos_splits_hold_four_tasks(root: Path, name: str, count: int):
    observations = split(root / "demo" / "observations", name)
    assert len(observations) == count
    assert len({r.task for r in observations.records}) == 4


def test_the_demos_splits_share_no_episode(root: Path):
    params = load_params(root / "params.yaml")
    source = [ObservationParams(str(root / s.path), s.split) for s in (params.calibration, params.heldout)]
    calibration, heldout = map(Observations, source)
    check_disjoint(calibration.episodes, heldout)


def test_an_observation_is_what_infer_takes(folder: Path):
    record, found = read_records(folder)[0], split(folder)[0]
    assert found.keys() == {"images", "state", "prompt"}
    assert found["prompt"] == record["prompt"]
    assert found["state"].dtype == np.float32
    np.testing.assert_array_equal(found["state"], np.float32(record["state"]))
    for camera, file in record["images"].items():
        np.testing.assert_array_equal(found["images"][camera], np.asarray(Image.open(folder / file)))


def test_a_split_that_nothing_has_is_refused(folder: Path):
    with pytest.raises(ObservationError, match="no observation has split 'training'"):
        split(folder, "training")


def test_a_folder_without_an_index_is_refused(tmp_path: Path):
    with pytest.raises(ObservationError, match=r"index\.jsonl not found"):
        split(tmp_path)


BROKEN_LINES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut": (lambda line: line[:-4], "truncated"),
    "empty": (lambda line: b"", "truncated"),
    "no step": (lambda line: line.replace(b'"step"', b'"stop"'), "stop|step"),
    "text for the state": (lambda line: line.replace(b'"state": [', b'"state": ["x", '), "state"),
    "NaN in the state": (lambda line: line.replace(b'"state": [', b'"state": [NaN, '), "malformed"),
    "no UTF-8": (lambda line: line.replace(b'"prompt": "', b'"prompt": "\xff'), "utf-8"),
}


@pytest.mark.parametrize("kind", BROKEN_LINES)
def test_a_broken_line_is_named_by_its_number(folder: Path, kind: str):
    change, part = BROKEN_LINES[kind]
    index = folder / "index.jsonl"
    lines = index.read_bytes().split(b"\n")
    lines[2] = change(lines[2])
    index.write_bytes(b"\n".join(lines))
    with pytest.raises(ObservationError, match=rf"index\.jsonl:3: .*({part})"):
        split(folder)


def test_a_line_separator_in_a_prompt_does_not_end_its_line(folder: Path):
    records = read_records(folder)
    records[0]["prompt"] = "open\u2028the drawer"
    lines = (json.dumps(record, ensure_ascii=False) for record in records)
    (folder / "index.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert split(folder)[0]["prompt"] == "open\u2028the drawer"


def first_image(folder: Path) -> Path:
    return folder / read_records(folder)[0]["images"]["corner2"]


def test_a_missing_image_is_named(folder: Path):
    image = first_image(folder)
    image.unlink()
    with pytest.raises(ObservationError, match=f"{image.name}: cannot be read as an image"):
        split(folder)[0]


def broken_chunk(data: bytes) -> bytes:
    """Two image chunks, the second with a damaged name."""
    start = data.index(b"IDAT") - 4
    length = int.from_bytes(data[start : start + 4])
    chunk = data[start + 8 : start + 8 + length]
    return (
        data[:start] + len(chunk[:99]).to_bytes(4) + b"IDAT" + chunk[:99] + b"\0\0\0\0" + b"\0\0\0\1I\xc1AT"
    )


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"text",
        lambda data: data[: len(data) // 2],
        lambda data: data[:3000] + bytes(500) + data[3500:],
        broken_chunk,
    ],
)
def test_a_corrupt_image_is_named(folder: Path, damage: Callable[[bytes], bytes]):
    image = first_image(folder)
    image.write_bytes(damage(image.read_bytes()))
    with pytest.raises(ObservationError, match=f"{image.name}: cannot be read as an image"):
        split(folder)[0]


def change_pixel(folder: Path) -> None:
    with Image.open(first_image(folder)) as image:
        pixels = np.array(image)
    pixels[5, 7, 1] ^= 1
    Image.fromarray(pixels).save(first_image(folder))


def change_state(folder: Path) -> None:
    records = read_records(folder)
    records[0]["state"][1] += 1e-6
    write_records(folder, records)


def change_prompt(folder: Path) -> None:
    records = read_records(folder)
    records[0]["prompt"] += "!"
    write_records(folder, records)


def change_order(folder: Path) -> None:
    write_records(folder, read_records(folder)[::-1])


def swap_cameras(folder: Path) -> None:
    records = read_records(folder)
    images = records[0]["images"]
    records[0]["images"] = dict(zip(images, reversed(images.values()), strict=True))
    write_records(folder, records)


@pytest.mark.parametrize("change", [change_pixel, change_state, change_prompt, change_order, swap_cameras])
def test_the_hash_changes_with(folder: Path, change: Callable[[Path], None]):
    before = split(folder).sha256()
    change(folder)
    assert split(folder).sha256() != before


def respace(folder: Path) -> None:
    lines = (json.dumps(record, separators=(",", ":")) for record in read_records(folder))
    (folder / "index.jsonl").write_text("\n".join(lines))


def change_other_split(folder: Path) -> None:
    records = read_records(folder)
    other = next(r for r in records if r["split"] == "heldout")
    other["state"][0] += 1
    (folder / other["images"]["corner2"]).write_bytes(b"other")
    write_records(folder, records)


def add_file(folder: Path) -> None:
    (folder / "notes.txt").write_text("a file that the index does not name")


@pytest.mark.parametrize("change", [respace, change_other_split, add_file])
def test_the_hash_does_not_change_with(folder: Path, change: Callable[[Path], None]):
    before = split(folder).sha256()
    change(folder)
    assert split(folder).sha256() == before


def test_the_hash_does_not_depend_on_where_the_folder_lies(folder: Path):
    before = split(folder).sha256()
    assert split(folder.rename(folder.with_name("moved"))).sha256() == before


@pytest.fixture
def calibrating(fresh_workspace: Path) -> Path:
    """A workspace in which the calibrate stage is next, with the result of an earlier one."""
    for module in ("export.checkpoint.__main__", "export.tables"):
        run_stage(fresh_workspace, module)
    earlier = fresh_workspace / "artifacts" / "calibration"
    earlier.mkdir()
    (earlier / "set.json").write_text("earlier")
    return fresh_workspace


def assert_calibrate_refuses(workspace: Path, message: str) -> None:
    with pytest.raises(ObservationError, match=message):
        run_stage(workspace, "export.calibrate")
    assert [p.name for p in (workspace / "artifacts").glob("*calibration*")] == ["calibration"]
    assert [p.name for p in (workspace / "artifacts" / "calibration").iterdir()] == ["set.json"]
    assert (workspace / "artifacts" / "calibration" / "set.json").read_text() == "earlier"


def test_the_reference_refuses_an_episode_that_calibration_saw(calibrating: Path):
    folder = calibrating / "demo" / "observations"
    records = read_records(folder)
    used = next(r for r in records if r["split"] == "calibration")
    write_records(folder, [*records, used | {"split": "heldout", "step": used["step"] + 1}])
    run_stage(calibrating, "export.calibrate")
    shared = rf"share episodes \[\('{used['task']}', {used['episode']}\)\]"
    with pytest.raises(ObservationError, match=shared):
        run_stage(calibrating, "validate.reference")
    assert not (calibrating / "artifacts" / "reference").exists()


def test_the_same_episode_number_of_another_task_is_no_overlap(folder: Path):
    records = read_records(folder)
    for record in records:
        record["episode"] = 0 if record["split"] == "calibration" else 1
    records[0]["episode"], records[0]["task"] = 1, "another task"
    write_records(folder, records)
    check_disjoint(split(folder).episodes, split(folder, "heldout"))


def test_the_reference_refuses_one_split_for_both_ends(calibrating: Path):
    change_params(calibrating, heldout__split="calibration")
    run_stage(calibrating, "export.calibrate")
    with pytest.raises(ObservationError, match="calibration and gates share episodes"):
        run_stage(calibrating, "validate.reference")


def test_calibrate_refuses_an_empty_set(calibrating: Path):
    folder = calibrating / "demo" / "observations"
    write_records(folder, [r for r in read_records(folder) if r["split"] != "calibration"])
    assert_calibrate_refuses(calibrating, "no observation has split 'calibration'")


def test_calibrate_does_not_skip_an_observation_it_cannot_read(calibrating: Path):
    folder = calibrating / "demo" / "observations"
    last = [r for r in read_records(folder) if r["split"] == "calibration"][-1]
    (folder / last["images"]["gripperPOV"]).unlink()
    assert_calibrate_refuses(calibrating, f"{last['images']['gripperPOV']}: cannot be read")


def test_calibrate_refuses_an_observation_without_a_live_camera(calibrating: Path):
    folder = calibrating / "demo" / "observations"
    records = read_records(folder)
    for record in records:
        del record["images"]["gripperPOV"]
    write_records(folder, records)
    assert_calibrate_refuses(calibrating, "gripperPOV")
