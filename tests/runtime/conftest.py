"""A machine with a GPU that is not there."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from pi05_runtime import lock as lock_module
from pi05_runtime import policy
from pi05_runtime.engines import Engine
from pi05_runtime.engines.ort import OrtEngine
from pi05_runtime.geometry import COMPONENTS, Signature
from tests.runtime.bundle_edits import onnx_file

RTX = "sm120-rtx"


@pytest.fixture(scope="module")
def device(workspace: Path) -> Iterator[None]:
    """A machine with the target's GPU, on which the fp32 twins answer in place of the engines."""
    bundle = workspace / "artifacts" / "bundle"
    twins = {c: bundle / onnx_file(bundle, c, "fp32.onnx") for c in COMPONENTS}

    def open_engine(
        target: str, files: Mapping[str, Path], signatures: Mapping[str, Signature], choices: object
    ) -> Engine:
        assert target == RTX and all(path.stat().st_size > 1000 for path in files.values())
        return OrtEngine(twins, signatures)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock_module, "device_capability", lambda: "12.0")
        patch.setattr(policy, "open_engine", open_engine)
        yield
