"""A pull from olah, somebody else's Hub server: that a device does not merely agree with our own.

It serves a git repository under the Hub's addresses, read-only, and unlike the Hub knows no Range.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from export.card import model_card
from export.publish import prepare
from export.signing import CARD, sign
from pi05_runtime.device.pull import needed, pull
from pi05_runtime.device.store import Store
from pi05_runtime.signature import FILE as SIGNATURE
from tests.pipeline import TARGET
from tests.runtime.device.stores import REPO, write_keys

OLAH = "olah==0.5.4"
BEGUN = "token_embedding.bin"
LISTENS = re.compile(r"running on (http://127\.0\.0\.1:\d+)")
CONFIG = """
[basic]
repos-path = "{folder}/cache"
mirrors-path = ["{folder}/mirrors"]
[accessibility]
offline = true
"""


@pytest.fixture(scope="session")
def olah(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its command, in an environment of its own; fails where no package index can be reached."""
    venv = tmp_path_factory.mktemp("olah") / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    install = [venv / "bin" / "python", "-m", "pip", "install", "--quiet", OLAH]
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, f"{OLAH} cannot be installed: {done.stderr}"
    return venv / "bin" / "olah-cli"


@pytest.fixture
def mirror(olah: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder whose git repositories a server on a free port offers to the device."""
    folder, log = tmp_path / "mirrors", tmp_path / "olah.log"
    config = tmp_path / "olah.toml"
    config.write_text(CONFIG.format(folder=tmp_path))
    command = [
        olah,
        "--config",
        config,
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--log-path",
        tmp_path / "logs",
    ]
    with log.open("wb") as output:
        server = subprocess.Popen(command, cwd=tmp_path, stdout=output, stderr=subprocess.STDOUT)
    try:
        for _ in range(600):
            if server.poll() is not None or (listens := LISTENS.search(log.read_text())):
                break
            time.sleep(0.1)
        assert server.poll() is None and listens, "olah does not listen"
        monkeypatch.setenv("HF_ENDPOINT", listens[1])
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield folder
    finally:
        server.kill()
        server.wait()
        print(log.read_text())


def commit(folder: Path, tag: str) -> str:
    """Everything in the folder as a git commit, on `main`."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", folder, "-c", "user.name=test", "-c", "user.email=test@localhost", *arguments]
        environment = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull}
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    git("init", "--initial-branch=main")
    git("add", "--all")
    git("commit", "--message=release")
    git("tag", tag)
    return git("rev-parse", "HEAD").strip()


def test_a_pull_from_olah(mirror: Path, bundle: Path, tmp_path: Path) -> None:
    """What was begun elsewhere is whole after one request, though all of it comes again."""
    store = Store(tmp_path / "store")
    release = prepare(bundle, write_keys(store.keys, "release"))
    repository = shutil.copytree(bundle, mirror / "models" / REPO)
    (repository / CARD).write_text(model_card(release.manifest, REPO, release.key.public.fingerprint))
    sign(bundle, release.key, repository / SIGNATURE)
    expected = commit(repository, release.tag)
    files = needed(release.manifest, TARGET)
    store.objects.mkdir(parents=True)
    part = store.objects / f"{files[BEGUN].sha256}.part"
    part.write_bytes((bundle / BEGUN).read_bytes()[:1000])

    record = pull(store, REPO, release.tag, lambda _: TARGET)

    assert (record.state, record.commit) == ("verified", expected)
    for name in files:
        assert (store.bundle(record.id) / name).read_bytes() == (bundle / name).read_bytes()
    assert (tmp_path / "olah.log").read_text().count(f"{BEGUN} HTTP/1.1") == 1
    assert pull(store, REPO, "main", lambda _: TARGET).id == record.id
