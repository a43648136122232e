"""The pipeline as a whole: recipes, determinism, and what it refuses."""

from pathlib import Path


def test_bundle_exists(workspace: Path):
    assert (workspace / "artifacts" / "bundle" / "manifest.json").is_file()
