"""A served bundle, and the openpi-client that robots have, unmodified, in an environment of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipeline import TARGET
from tests.runtime.serve.serving import STEPS, Served, install_openpi_client, pi05_serve


@pytest.fixture(scope="session")
def openpi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has it."""
    return install_openpi_client(tmp_path_factory.mktemp("openpi"))


@pytest.fixture(scope="session")
def bundled(workspace: Path) -> Path:
    """The pipeline's bundle, to read."""
    return workspace / "artifacts" / "bundle"


@pytest.fixture(scope="module")
def served(bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    log = tmp_path_factory.mktemp("serve") / "log"
    with pi05_serve(log, bundled, "--target", TARGET, "--steps", STEPS) as served:
        yield served
