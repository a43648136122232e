"""Pulling from a Hub on loopback: what travels, what goes wrong, and what is never lost or trusted."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pi05_runtime.device import hub as hub_module
from pi05_runtime.device import store as store_module
from pi05_runtime.device.pull import needed, pull, verified
from pi05_runtime.device.slots import activate, read_slots
from pi05_runtime.device.store import Store
from pi05_runtime.device.trial import test as selftest
from pi05_runtime.errors import BundleError, DeviceError, NetworkError
from pi05_runtime.manifest import Manifest, read_manifest
from tests.hub.faults import Corrupt, Cut, Refuse
from tests.hub.wire import Hub
from tests.pipeline import TARGET
from tests.runtime.bundle_edits import edited, onnx_file, replace
from tests.runtime.device.stores import REPO, write_keys

BIG = r"GET .*token_embedding"
"""Requests for a file that is no small one."""


def choose(_: Manifest) -> str:
    return TARGET


def test_a_pulled_bundle_acts(hub: Hub, store: Store, published: Path) -> None:
    record = pull(store, REPO, "main", choose)
    manifest = read_manifest(published)
    assert (record.state, record.target, record.version) == ("verified", TARGET, manifest.version)
    files = needed(manifest, TARGET)
    assert len({f.sha256 for f in files.values()}) == len(list(store.objects.iterdir()))
    assert not (store.bundle(record.id) / onnx_file(published, "vision", "bf16.onnx")).exists()
    selftest(store, record.id, minutes=2)
    assert activate(store, record.id).active == record.id


def test_a_second_pull_asks_for_the_manifest_alone(hub: Hub, store: Store, published: Path) -> None:
    first = pull(store, REPO, "main", choose)
    hub.requests.clear()
    assert pull(store, REPO, first.commit, choose).id == first.id
    assert {line.line.rsplit("/", 1)[1] for line in hub.asked("GET")} <= {"manifest.json", "model.sig"}


def test_a_tested_bundle_that_is_pulled_again_stays_tested(hub: Hub, store: Store, published: Path) -> None:
    store.write_record(pull(store, REPO, "main", choose).at("tested"))
    assert pull(store, REPO, "main", choose).state == "tested"


def test_a_pull_that_is_refused_leaves_the_same_bundle_as_it_was(
    hub: Hub, store: Store, bundle: Path, upload: Callable[..., None], tmp_path: Path
) -> None:
    upload(bundle)
    record = pull(store, REPO, "main", choose)
    hub.faults.append(Corrupt(r"GET .*model\.sig", times=99))
    with pytest.raises(BundleError, match=r"model\.sig"):
        pull(store, REPO, "main", choose)
    assert verified(store, record) == record
    assert not store.bundle("arriving").exists()


def test_only_changed_files_travel(
    hub: Hub, store: Store, published: Path, upload: Callable[[Path], None]
) -> None:
    old = pull(store, REPO, "main", choose)
    name = onnx_file(published, "vision", "weights.bin")
    data = bytearray((published / name).read_bytes())
    data[-1] ^= 1
    replace(published, name, bytes(data))
    with edited(published) as manifest:
        manifest["version"] = "0.2.0"
    upload(published)
    new = pull(store, REPO, "v0.2.0", choose)
    assert new.id != old.id
    small = sum((store.bundle(new.id) / name).stat().st_size for name in ("manifest.json", "model.sig"))
    assert hub.sent("GET") < len(data) + small + 10_000
    assert verified(store, old).state == "verified"


@pytest.mark.parametrize(
    "fault",
    [Cut(BIG, after=1000), Cut(BIG, after=5000, times=2), Refuse(BIG, 429, retry_after=0), Refuse(BIG, 503)],
    ids=["cut", "cut twice", "429", "503"],
)
def test_a_fault_that_passes_costs_nothing_but_time(
    hub: Hub, store: Store, published: Path, fault: Cut | Refuse
) -> None:
    hub.faults.append(fault)
    assert pull(store, REPO, "main", choose).state == "verified"
    assert fault.times == 0


def test_a_download_that_was_corrupted_is_asked_for_again(hub: Hub, store: Store, published: Path) -> None:
    hub.faults.append(Corrupt(BIG))
    assert pull(store, REPO, "main", choose).state == "verified"


def test_a_download_that_stays_corrupted_is_refused(hub: Hub, store: Store, published: Path) -> None:
    hub.faults.append(Corrupt(BIG, times=99))
    with pytest.raises(BundleError, match=r"token_embedding\.bin: .* damaged on its way, twice"):
        pull(store, REPO, "main", choose)
    assert not store.all_records() and read_slots(store).active is None


def test_a_pull_goes_on_where_it_was_killed(hub: Hub, store: Store, published: Path) -> None:
    hub.faults.append(Cut(BIG, after=100_000, times=99))
    with pytest.raises(NetworkError, match="what arrived is kept"):
        pull(store, REPO, "main", choose)
    parts = list(store.objects.glob("*.part"))
    have = sum(part.stat().st_size for part in parts)
    assert have >= 1 << 16
    hub.faults.clear()
    hub.requests.clear()
    pull(store, REPO, "main", choose)
    size = read_manifest(published).files["token_embedding.bin"].size
    assert hub.sent("token_embedding") == size - have


def test_eight_pulls_at_once_download_once(hub: Hub, store: Store, published: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        records = list(pool.map(lambda _: pull(store, REPO, "main", choose), range(8)))
    assert len(set(records)) == 1
    assert len([r for r in hub.asked("GET .*token_embedding") if r.status == 200]) == 1


def test_no_room_is_said_before_the_first_byte(
    hub: Hub, store: Store, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "RESERVE_BYTES", 1 << 60)
    with pytest.raises(DeviceError, match=r"MB free, .* MB expected; run `pi05 gc`"):
        pull(store, REPO, "main", choose)
    assert not hub.asked(BIG)


def test_offline_takes_what_was_pulled(hub: Hub, store: Store, published: Path) -> None:
    with pytest.raises(DeviceError, match="was not pulled to this device before"):
        pull(store, REPO, "main", choose, offline=True)
    record = pull(store, REPO, "main", choose)
    hub.requests.clear()
    for revision in ("main", record.commit):
        assert pull(store, REPO, revision, choose, offline=True) == record
    assert not hub.requests


def test_a_signer_that_is_not_trusted(
    hub: Hub, store: Store, bundle: Path, upload: Callable[..., None], tmp_path: Path
) -> None:
    upload(bundle, write_keys(tmp_path / "elsewhere", "stranger"))
    with pytest.raises(BundleError, match=r"signed by key [0-9a-f]{64}, one of \['"):
        pull(store, REPO, "main", choose)
    assert not hub.asked(BIG) and not store.all_records()


@pytest.mark.parametrize(("repo", "revision"), [("acme/none", "main"), (REPO, "v9")])
def test_what_is_not_there(hub: Hub, store: Store, published: Path, repo: str, revision: str) -> None:
    with pytest.raises(NetworkError, match="not found: check repository, revision and file"):
        pull(store, repo, revision, choose)


def test_no_network(store: Store, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "WAITS_S", (0,))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(NetworkError, match=r"cannot be reached .* after 2 tries"):
        pull(store, REPO, "main", choose)


@pytest.mark.parametrize("damage", ["flip", "cut", "extra", "link"])
def test_a_bundle_that_was_changed_on_the_device(
    hub: Hub, store: Store, published: Path, damage: str
) -> None:
    record = pull(store, REPO, "main", choose)
    path = store.bundle(record.id) / "token_embedding.bin"
    data = path.read_bytes()
    path.chmod(0o644)
    if damage == "flip":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "cut":
        path.write_bytes(data[:-1])
    elif damage == "extra":
        (path.parent / "extra.engine").write_bytes(b"engine")
    else:
        path.unlink()
        path.symlink_to("/etc/hostname")
    with pytest.raises(BundleError):
        verified(store, record)
    assert store.record(record.id).state == "pulled"
    if damage != "extra":
        assert pull(store, REPO, "main", choose).state == "verified"
