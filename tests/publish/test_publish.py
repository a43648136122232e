"""Publishing to the loopback Hub with the stock signer and client, and what the Hub may refuse."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from huggingface_hub import HfApi, snapshot_download

from export.artifacts import BUNDLE
from export.hub import PublishError
from pi05_runtime.errors import BundleError
from pi05_runtime.manifest import FILE as MANIFEST
from pi05_runtime.manifest import read_manifest
from pi05_runtime.signature import check_signed, public_key, read_signature
from tests.hub.faults import Corrupt, Overtake, Refuse
from tests.hub.loopback_hub import READER
from tests.hub.wire import Hub
from tests.pipeline import ROOT, TARGET, run_stage
from tests.publish.publishing import REPO, TAG, publish, write_key
from tests.runtime.bundle_edits import ACTED, edited, onnx_file, replace

BESIDE = {"README.md", "model.sig"}


def new_version(here: Path, version: str) -> None:
    """The next version, with other weights in one component."""
    bundle = here / BUNDLE
    name = onnx_file(bundle, "denoise", "weights.bin")
    replace(bundle, name, (bundle / name).read_bytes()[::-1])
    with edited(bundle) as manifest:
        manifest["version"] = version


def on_the_hub(hub: Hub, revision: str) -> set[str]:
    return set(hub.store.tree(REPO, revision)) - {".gitattributes"}


def test_a_version_is_published_whole_signed_and_tagged(
    hub: Hub, here: Path, key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(here, key)
    said = capsys.readouterr().out
    commit = hub.store.resolve(REPO, TAG)
    assert commit == hub.store.resolve(REPO, "main") and commit in said
    manifest = read_manifest(here / BUNDLE)
    assert on_the_hub(hub, TAG) == {*manifest.files, MANIFEST, *BESIDE}
    out = tmp_path / "out"
    snapshot_download(REPO, revision=TAG, local_dir=out, endpoint=hub.url, token=False)
    for name in (*manifest.files, MANIFEST):
        assert (out / name).read_bytes() == (here / BUNDLE / name).read_bytes()
        assert f"  sent     {name}\n" in said
    signer = public_key(serialization.load_pem_private_key(key.read_bytes(), None).public_key())  # type: ignore[arg-type]
    check_signed(out, read_manifest(out), read_signature(out, [signer]))
    assert f"signed by {signer.fingerprint}" in said
    assert signer.fingerprint in (out / "README.md").read_text()


def test_the_stock_verifier_accepts_what_was_downloaded(
    hub: Hub, here: Path, key: Path, tmp_path: Path
) -> None:
    """The commands of docs/publish.md: the client's notes have to be named, card and git files need not."""
    publish(here, key)
    out, public = tmp_path / "out", tmp_path / "release.pub.pem"
    snapshot_download(REPO, revision=TAG, local_dir=out, endpoint=hub.url, token=False)
    show = ["openssl", "ec", "-in", str(key), "-pubout", "-out", str(public)]
    subprocess.run(show, check=True, capture_output=True)
    verify = [sys.executable, "-m", "model_signing", "verify", "key", "--public_key", str(public)]
    verify += ["--signature", str(out / "model.sig"), "--ignore-paths", str(out / ".cache"), str(out)]
    done = subprocess.run(verify, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (out / "tokenizer.model").write_bytes(b"other")
    assert subprocess.run(verify, capture_output=True).returncode != 0


def test_the_bundles_folder_stays_as_it_was(hub: Hub, here: Path, key: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in here.rglob("*") if p.is_file()}
    publish(here, key)
    assert {p: p.stat().st_mtime_ns for p in here.rglob("*") if p.is_file()} == before


def test_only_changed_files_travel_and_old_ones_go(
    hub: Hub, here: Path, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(here, key)
    first = hub.store.resolve(REPO, "main")
    hub.requests.clear()
    new_version(here, "0.2.0")
    bundle = here / BUNDLE
    (bundle / "manifest.schema.json").unlink()
    with edited(bundle) as manifest:
        del manifest["files"]["manifest.schema.json"]
    publish(here, key)
    changed = onnx_file(bundle, "denoise", "weights.bin")
    assert hub.received("PUT") == (bundle / changed).stat().st_size
    small = sum(hub.store.entry(REPO, "v0.2.0", name).size for name in (MANIFEST, *BESIDE))
    assert hub.received("/commit/") < 2 * small
    said = capsys.readouterr().out
    assert f"  sent     {changed}\n" in said and "  removed  manifest.schema.json\n" in said
    assert "manifest.schema.json" not in on_the_hub(hub, "v0.2.0")
    assert hub.store.resolve(REPO, TAG) == first, "a published version stays what it was"
    assert ".gitattributes" in hub.store.tree(REPO, "v0.2.0")


def test_the_same_version_again_sends_nothing(
    hub: Hub, here: Path, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(here, key)
    hub.requests.clear()
    publish(here, key)
    assert "v0.1.0 already" in capsys.readouterr().out
    assert not hub.asked("PUT|/commit/|/tag/")


def test_a_version_that_exists_with_other_contents(hub: Hub, here: Path, key: Path) -> None:
    publish(here, key)
    new_version(here, "0.1.0")
    with pytest.raises(
        PublishError, match=r"v0\.1\.0 exists and differs in \[.*raise bundle\.version"
    ) as error:
        publish(here, key)
    assert f"['{MANIFEST}', '{onnx_file(here / BUNDLE, 'denoise', 'weights.bin')}']" in str(error.value)


def test_a_version_that_exists_from_another_signer(hub: Hub, here: Path, key: Path, tmp_path: Path) -> None:
    publish(here, key)
    with pytest.raises(PublishError, match=r"exists and is not signed by .*signed by key .*raise bundle"):
        publish(here, write_key(tmp_path / "other.pem"))


def test_a_publish_that_ended_before_its_tag_is_finished(hub: Hub, here: Path, key: Path) -> None:
    hub.faults.append(Refuse("/tag/", status=400))
    with pytest.raises(PublishError, match="the Hub answered 400"):
        publish(here, key)
    hub.requests.clear()
    publish(here, key)
    assert hub.store.resolve(REPO, TAG) and not hub.asked("PUT")


def test_the_card_is_what_the_manifest_says(hub: Hub, here: Path, key: Path) -> None:
    with edited(here / BUNDLE) as manifest:
        manifest["gates"][TARGET]["vision"] = {"cosine": 0.99991, "threshold": 0.9995, "judged": "twin"}
    publish(here, key)
    entry = hub.store.entry(REPO, TAG, "README.md")
    _, front, text = hub.store.blob(entry.sha256).read_text().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "license": "apache-2.0",
        "library_name": "pi05-runtime",
        "pipeline_tag": "robotics",
        "tags": ["pi05", "robotics", "tensorrt"],
    }
    manifest = read_manifest(here / BUNDLE)
    assert "| cpu-ort | vision | twin | 0.999910 | 0.9995 |" in text
    for name, gate in manifest.gates[TARGET].items():
        assert f"| {TARGET} | {name} | {gate.judged} | {gate.cosine:.6f} | {gate.threshold} |" in text
    recipes = " | ".join(manifest.components[c][0].recipe for c in ("vision", "prefill", "denoise"))
    assert f"| {TARGET} | onnxruntime {manifest.targets[TARGET].lock.version} | none | {recipes} |" in text
    assert "pi05 pull acme/pi05-demo@v0.1.0 --target auto" in text and "Licence: Apache-2.0" in text


def test_the_card_tells_what_engines_did(hub: Hub, here: Path, key: Path) -> None:
    with edited(here / BUNDLE) as manifest:
        manifest["closed_loop"] = {TARGET: ACTED}
    publish(here, key)
    text = hub.store.blob(hub.store.entry(REPO, TAG, "README.md").sha256).read_text()
    assert "## In a simulator" in text
    assert f"| {TARGET} | engine | metaworld | 40 | 39 | 2 | 1 | 0.004 |" in text


def test_private_repository(hub: Hub, here: Path, key: Path) -> None:
    publish(here, key, "--private")
    assert hub.store.read(REPO).private


def test_a_public_repository_where_a_private_one_was_asked_for(hub: Hub, here: Path, key: Path) -> None:
    hub.store.create(REPO, private=False)
    with pytest.raises(PublishError, match="a public repository found, a private one asked for"):
        publish(here, key, "--private")
    assert not hub.asked("PUT|/commit/")


def test_no_token(hub: Hub, here: Path, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PublishError, match="no token for the Hub found; run `hf auth login`"):
        publish(here, key)


@pytest.mark.parametrize(
    "name, expected", [("pi05-demo", "OWNER/NAME expected"), ("acme/a b", "acme/a b: .*check name")]
)
def test_a_name_that_is_none(hub: Hub, here: Path, key: Path, name: str, expected: str) -> None:
    with pytest.raises(PublishError, match=expected):
        run_stage(here, "export.publish", "--repo", name, "--key", str(key))
    assert not hub.store.repos.exists()


@pytest.mark.parametrize(
    "token, expected", [("hf_nobody", "401.*hf auth login"), (READER, "403.*may not write")]
)
def test_a_token_that_may_not(
    hub: Hub, here: Path, key: Path, monkeypatch: pytest.MonkeyPatch, token: str, expected: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PublishError, match=f"{REPO}: the Hub answered {expected}"):
        publish(here, key)


def test_somebody_else_commits_at_the_same_time(hub: Hub, here: Path, key: Path) -> None:
    hub.faults.append(Overtake("/commit/main"))
    with pytest.raises(PublishError, match=r"412 \(A commit has happened.*run the command again"):
        publish(here, key)
    assert not hub.store.read(REPO).tags
    publish(here, key)
    assert "theirs.txt" not in on_the_hub(hub, TAG)


@pytest.mark.parametrize("status", [409, 500])
def test_the_hub_does_not_take_the_tag(hub: Hub, here: Path, key: Path, status: int) -> None:
    hub.faults.append(Refuse("/tag/", status=status, times=99))
    with pytest.raises(PublishError, match=f"the Hub answered {status}.*run the command again"):
        publish(here, key)


def test_no_network(hub: Hub, here: Path, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.hub.HfApi", partial(HfApi, "http://127.0.0.1:9"))
    with pytest.raises(PublishError, match=f"{REPO}: .*Connection refused.*check name and network"):
        publish(here, key)


def test_a_hub_that_holds_something_else_than_was_sent(
    hub: Hub, here: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No tag vouches for what did not arrive."""
    commit = hub.store.commit

    def damage(name: str, branch: str, tree: dict[str, Any], summary: str) -> str:
        return commit(name, branch, {**tree, "manifest.json": hub.store.put(b"{}")}, summary)

    monkeypatch.setattr(hub.store, "commit", damage)
    with pytest.raises(PublishError, match=r"\['manifest.json'\] of commit .* arrived otherwise than sent"):
        publish(here, key)
    assert not hub.store.read(REPO).tags


def test_a_damaged_signature_on_the_hub_is_not_taken_for_ours(hub: Hub, here: Path, key: Path) -> None:
    publish(here, key)
    hub.faults.append(Corrupt("GET .*/model.sig"))
    with pytest.raises(PublishError, match="is not signed by"):
        publish(here, key)


def test_command(hub: Hub, here: Path, key: Path, tmp_path: Path) -> None:
    """As a person runs it, exit codes included."""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT)}
    environment["HF_HOME"] = str(tmp_path / "home")
    command = [sys.executable, "-m", "export.publish", "--repo", REPO, "--key", str(key)]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"publish: {REPO} {TAG}, commit {hub.store.resolve(REPO, TAG)}" in done.stdout
    (here / BUNDLE / "tokenizer.model").unlink()
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)
    assert done.returncode == BundleError.exit_code
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")


def test_publishing_needs_no_stage(root: Path) -> None:
    stages = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    assert "export.publish" not in json.dumps(stages)
