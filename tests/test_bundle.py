"""The bundle is complete, and the same inputs give the same hashes."""

import hashlib
from pathlib import Path

from pi05_runtime.manifest import read_manifest
from tests.pipeline import change_params, run_quantized, run_stage


def test_manifest_names_every_file_with_its_hash(bundle: Path):
    manifest = read_manifest(bundle)
    found = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()}
    assert found == manifest.files.keys() | {"manifest.json"}
    for name, file in manifest.files.items():
        data = (bundle / name).read_bytes()
        assert (file.size, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_every_target_names_files_of_the_bundle(bundle: Path):
    manifest = read_manifest(bundle)
    for entry in manifest.targets.values():
        assert set(entry.files) <= manifest.files.keys()
        assert {engine.file for engine in entry.engines.values()} <= set(entry.files)
        assert entry.lock.version


def test_the_same_inputs_give_the_same_hashes(copied_workspace: Path):
    manifest = copied_workspace / "artifacts" / "bundle" / "manifest.json"
    before = manifest.read_bytes()
    run_stage(copied_workspace, "export.checkpoint.__main__")
    run_stage(copied_workspace, "export.tables")
    run_stage(copied_workspace, "export.calibrate")
    for component in ("vision", "prefill", "denoise"):
        run_stage(copied_workspace, "export.graph", component)
    run_quantized(copied_workspace)
    assert manifest.read_bytes() == before


def test_a_recipe_shows_in_the_manifest(copied_workspace: Path):
    before = read_manifest(copied_workspace / "artifacts" / "bundle")
    change_params(copied_workspace, components__denoise={"recipe": "int8", "keep": ["*.down"]})
    run_quantized(copied_workspace)
    after = read_manifest(copied_workspace / "artifacts" / "bundle")
    (variant,) = after.components["denoise"]
    assert (variant.recipe, variant.keep) == ("int8", ("*.down",))
    changed = {name for name, file in after.files.items() if before.files.get(name) != file}
    assert changed == {
        f"onnx/denoise/int8/{name}" for name in ("bf16.onnx", "fp32.onnx", "weights.bin", "table.json")
    }
    assert not [name for name in after.files if name.startswith("onnx/denoise/fp8")]
