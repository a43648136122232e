"""Nothing of a bundle is loaded before every file that its target names is proven intact."""

import hashlib
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pi05_runtime import load
from pi05_runtime import verify as verify_module
from pi05_runtime.errors import BundleError
from pi05_runtime.manifest import FILE, File, read_manifest
from pi05_runtime.verify import target_files, verify
from tests.pipeline import TARGET
from tests.runtime.bundle_edits import edited, onnx_file


def files_in_turn(bundle: Path) -> Iterator[tuple[str, bytes]]:
    """Name and contents of each file of the target, restored after each turn."""
    for name in target_files(read_manifest(bundle), TARGET).files:
        data = (bundle / name).read_bytes()
        yield name, data
        (bundle / name).write_bytes(data)


def test_untouched_bundle_is_intact(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    verify(bundle, manifest.files, manifest.files)


def test_manifest_names_every_other_file(bundle: Path) -> None:
    present = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert set(read_manifest(bundle).files) == present - {FILE}


def test_file_cut_by_one_byte(bundle: Path) -> None:
    for name, data in files_in_turn(bundle):
        (bundle / name).write_bytes(data[:-1])
        with pytest.raises(BundleError, match="copy the bundle again") as error:
            load(bundle, TARGET)
        assert f"{bundle / name}: {len(data) - 1} bytes found, {len(data)} expected" in str(error.value)


def test_byte_flipped(bundle: Path) -> None:
    for name, data in files_in_turn(bundle):
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        (bundle / name).write_bytes(flipped)
        found, expected = (hashlib.sha256(d).hexdigest() for d in (flipped, data))
        with pytest.raises(BundleError, match="copy the bundle again") as error:
            load(bundle, TARGET)
        assert f"{bundle / name}: sha256 {found} found, {expected} expected" in str(error.value)


def test_missing_file(bundle: Path) -> None:
    for name, _ in files_in_turn(bundle):
        (bundle / name).unlink()
        with pytest.raises(BundleError) as error:
            load(bundle, TARGET)
        assert f"{bundle / name}: no file found" in str(error.value)


@pytest.mark.parametrize("name", ["tokenizer.model", "onnx/vision/bf16/weights.bin", "onnx/vision", "onnx"])
def test_symbolic_link(bundle: Path, tmp_path: Path, name: str) -> None:
    moved = tmp_path / "elsewhere"
    (bundle / name).rename(moved)
    (bundle / name).symlink_to(moved)
    with pytest.raises(BundleError, match=rf"{name}.*: a symbolic link to {moved}.*a regular file expected"):
        load(bundle, TARGET)


def test_bundle_itself_may_be_a_link(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(bundle)
    load(tmp_path / "current", TARGET)


def test_directory_in_place_of_a_file(bundle: Path) -> None:
    (bundle / "tokenizer.model").unlink()
    (bundle / "tokenizer.model").mkdir()
    with pytest.raises(BundleError, match=r"tokenizer\.model: no file found"):
        load(bundle, TARGET)


@pytest.mark.parametrize("name", ["../tokenizer.model", "onnx/../../tokenizer.model", "{outside}"])
def test_name_outside_the_bundle(bundle: Path, tmp_path: Path, name: str) -> None:
    outside = shutil.move(bundle / "tokenizer.model", tmp_path / "tokenizer.model")
    name = name.format(outside=outside)
    with edited(bundle) as manifest:
        manifest["tokenizer"] = name
        manifest["files"][name] = manifest["files"].pop("tokenizer.model")
        entry = manifest["targets"][TARGET]
        entry["files"] = [name if file == "tokenizer.model" else file for file in entry["files"]]
    with pytest.raises(BundleError, match="only names inside the bundle") as error:
        load(bundle, TARGET)
    assert repr(name) in str(error.value)


def test_only_the_files_of_the_target_are_needed(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    others = manifest.files.keys() - set(target_files(manifest, TARGET).files)
    assert {onnx_file(bundle, c, "bf16.onnx") for c in manifest.components} < others
    for name in others:
        (bundle / name).unlink()
    load(bundle, TARGET)


@pytest.mark.parametrize("raised", [OSError(5, "read error"), KeyboardInterrupt()])
def test_a_bad_file_is_told_while_others_are_still_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException
) -> None:
    files = {name: File(1, "") for name in ("a", "b", "c", "d")}
    for name in files:
        (tmp_path / name).write_bytes(b"x")
    told = threading.Event()

    def hashing(path: Path) -> File:
        if path.name == "a":
            raise raised
        assert told.wait(60)
        return File(1, "")

    monkeypatch.setattr(verify_module, "hash_file", hashing)
    try:
        with pytest.raises((BundleError, KeyboardInterrupt)):
            verify(tmp_path, files, files)
        assert not told.is_set()
    finally:
        told.set()
