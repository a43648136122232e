"""Ways to change a bundle of one's own, as an attacker, a bad disk or a careless exporter would."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pi05_runtime.manifest import FILE

ACTED = {
    "suite": "metaworld",
    "tasks": ["reach-v3"],
    "scenes": 40,
    "successes": 39,
    "lost": 2,
    "won": 1,
    "divergence": 0.004,
    "judged": "engine",
    "least_success": 0.9,
    "largest_loss": 0.05,
    "largest_divergence": 0.05,
}
"""What a manifest tells of engines that acted."""


def onnx_file(bundle: Path, component: str, name: str) -> str:
    """A file of the component's wanted recipe, as the manifest names it."""
    recipe = json.loads((bundle / FILE).read_bytes())["components"][component][0]["recipe"]
    return f"onnx/{component}/{recipe}/{name}"


@contextmanager
def edited(bundle: Path) -> Iterator[dict[str, Any]]:
    """The manifest as plain JSON, written back afterwards."""
    manifest = json.loads((bundle / FILE).read_bytes())
    yield manifest
    (bundle / FILE).write_text(json.dumps(manifest))


def replace(bundle: Path, name: str, data: bytes) -> None:
    """Other contents for a file, with its size and hash in the manifest to match."""
    (bundle / name).write_bytes(data)
    with edited(bundle) as manifest:
        manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
