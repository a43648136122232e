"""The demo's own components, quantized by the pipeline, as engines of TensorRT for RTX."""

from collections import Counter
from pathlib import Path

import msgspec
import pytest

from pi05_runtime.build import BuildOptions, build_engine
from pi05_runtime.geometry import COMPONENTS, FUSED, PREFIX, signatures
from pi05_runtime.layer_table import Table
from pi05_runtime.manifest import read_manifest


@pytest.mark.parametrize("target", ["sm89-rtx", "sm120-rtx"])
@pytest.mark.parametrize("network", [*COMPONENTS, PREFIX])
def test_every_layer_runs_as_it_was_quantized(
    network: str, target: str, workspace: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(workspace / "artifacts" / "bundle")
    ports = signatures(manifest.geometry, len(manifest.interface.cameras), manifest.interface.horizon)
    variants = {
        component: sorted((workspace / "artifacts" / "quantized" / component).iterdir())[:1]
        for component in FUSED.get(network, (network,))
    }
    options = BuildOptions(minutes=5, workspace_gib=4)
    built = build_engine(target, variants, ports, manifest.prompt_buckets, options, tmp_path)
    planned: Counter[str] = Counter()
    for (folder,) in variants.values():
        table = msgspec.json.decode((folder / "table.json").read_bytes(), type=Table)
        planned.update(layer.precision for layer in table.layers)
    assert built.layers == planned
    assert built.file == f"{network}.engine" and (tmp_path / built.file).stat().st_size > 1_000_000
