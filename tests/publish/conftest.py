"""A bundle that could be published, a key, and the loopback Hub that takes it."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from export.artifacts import BUNDLE
from tests.hub.loopback_hub import WRITER, serve
from tests.hub.wire import Hub
from tests.publish.publishing import write_key


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return write_key(tmp_path / "release.pem")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", WRITER)
    with serve(tmp_path / "hub") as hub:
        monkeypatch.setattr("export.hub.HfApi", partial(HfApi, hub.url))
        yield hub


@pytest.fixture
def here(bundle: Path, tmp_path: Path) -> Path:
    """A folder with a bundle and nothing else of the pipeline."""
    (tmp_path / "here" / "artifacts").mkdir(parents=True)
    bundle.rename(tmp_path / "here" / BUNDLE)
    return tmp_path / "here"
