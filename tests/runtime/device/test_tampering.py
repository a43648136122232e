"""Whatever a hoster does, or somebody at a robot's disk, is refused, and what is active acts on.

docs/distribution.md has the attacks as tables; the last test holds it to them.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from pi05_runtime import golden, load_active
from pi05_runtime.device.pull import pull, verified
from pi05_runtime.device.slots import activate, read_slots, rollback
from pi05_runtime.device.store import Store
from pi05_runtime.device.trial import test as selftest
from pi05_runtime.errors import BundleError, DeviceError, Pi05Error
from pi05_runtime.manifest import Manifest
from tests.hub.wire import Hub
from tests.pipeline import ROOT, TARGET
from tests.runtime.bundle_edits import edited
from tests.runtime.device.attack import Attack
from tests.runtime.device.disk_attacks import BESIDE_THE_BUNDLES, MORE_ON_THE_DEVICE, ON_THE_DEVICE
from tests.runtime.device.hub_attacks import ON_THE_HUB, serve_bundle
from tests.runtime.device.scene import ACTIVE, NEW, PREVIOUS, TESTED, Scene
from tests.runtime.device.stores import REPO


def choose(_: Manifest) -> str:
    return TARGET


@pytest.fixture
def robot(scene: Scene, hub: Hub, tmp_path: Path) -> Scene:
    return scene.copy(tmp_path)


def acts(store: Store, version: str) -> None:
    """The active bundle is of that version, loads from scratch and decides."""
    with load_active(store.root, steps=1) as policy:
        sample = policy.manifest.golden
        folder = store.bundle(str(read_slots(store).active))
        policy.infer(golden.observation(folder, sample.file, sample.prompt)[0])
        assert policy.manifest.version == version


@pytest.mark.parametrize("attack", ON_THE_HUB, ids=lambda attack: attack.name)
def test_on_the_hub(robot: Scene, hub: Hub, scene: Scene, attack: Attack) -> None:
    store = robot.store
    before = store.all_records()
    attack.do(robot, hub)
    with pytest.raises(Pi05Error) as refused:
        pull(store, REPO, f"v{NEW}", choose)
    attack.check(refused.value)
    assert store.all_records() == before
    assert not (store.root / "evil").exists() and not (store.bundles / "evil").exists()
    acts(store, ACTIVE)
    hub.faults.clear()
    subprocess.run(["cp", "-a", f"{scene.folder}/hub", robot.folder], check=True)
    assert pull(store, REPO, f"v{NEW}", choose).state == "verified", "nothing that was sent stays in the way"


@pytest.mark.parametrize("attack", [*ON_THE_DEVICE, *MORE_ON_THE_DEVICE], ids=lambda attack: attack.name)
def test_on_the_device(robot: Scene, attack: Attack) -> None:
    store, id = robot.store, robot.ids[TESTED]
    attack.do(store.bundle(id), robot)
    with pytest.raises(Pi05Error) as refused:
        verified(store, store.record(id))
    attack.check(refused.value)
    with pytest.raises(DeviceError, match="is pulled, tested expected"):
        activate(store, id)
    acts(store, ACTIVE)
    shutil.rmtree(store.bundle(id))
    assert pull(store, REPO, f"v{TESTED}", choose).state == "verified", "as the message advises"


@pytest.mark.parametrize("attack", ON_THE_DEVICE, ids=lambda attack: attack.name)
def test_on_what_is_active(robot: Scene, attack: Attack) -> None:
    store = robot.store
    attack.do(store.bundle(robot.ids[ACTIVE]), robot)
    with pytest.raises(Pi05Error) as refused:
        load_active(store.root)
    attack.check(refused.value)
    rollback(store)
    acts(store, PREVIOUS)


@pytest.mark.parametrize("attack", BESIDE_THE_BUNDLES, ids=lambda attack: attack.name)
def test_beside_the_bundles(robot: Scene, attack: Attack) -> None:
    attack.do(robot)
    with pytest.raises(Pi05Error) as refused:
        load_active(robot.store.root)
    attack.check(refused.value)


def test_a_file_more_on_the_hub_is_never_asked_for(robot: Scene, hub: Hub) -> None:
    repo = hub.store.read(REPO)
    repo.commits[repo.tags[f"v{NEW}"]]["evil.engine"] = hub.store.put(b"engine")
    hub.store.write(REPO, repo)
    assert pull(robot.store, REPO, f"v{NEW}", choose).state == "verified"
    assert not hub.asked("evil")


def test_an_older_version_under_a_branch_is_taken_for_what_it_is(robot: Scene, hub: Hub) -> None:
    """A signature says who made a bundle, not that it is the latest: the answer names version and id."""
    repo = hub.store.read(REPO)
    repo.branches["main"] = repo.tags[f"v{PREVIOUS}"]
    hub.store.write(REPO, repo)
    record = pull(robot.store, REPO, "main", choose)
    assert (record.id, record.version) == (robot.ids[PREVIOUS], PREVIOUS)
    acts(robot.store, ACTIVE)


def test_a_bundle_that_is_tested_is_signed(robot: Scene, hub: Hub) -> None:
    """Manifest and weights replaced together: what would run them checks who made them."""
    id = pull(robot.store, REPO, f"v{NEW}", choose).id
    with edited(robot.store.bundle(id)) as manifest:
        manifest["name"] = "evil"
    with pytest.raises(BundleError, match="is signed: the signature is of another bundle"):
        selftest(robot.store, id, minutes=1)


def test_what_is_active_keeps_its_target(robot: Scene, hub: Hub) -> None:
    with pytest.raises(DeviceError, match="is in use for cpu-ort, sm120-rtx found"):
        pull(robot.store, REPO, f"v{ACTIVE}", lambda _: "sm120-rtx")
    acts(robot.store, ACTIVE)


def test_another_bundle_of_the_same_signer_is_taken_for_what_it_is(robot: Scene, hub: Hub) -> None:
    with edited(robot.bundle) as manifest:
        manifest["name"] = "another-arm"
    serve_bundle(robot, hub, robot.key)
    assert pull(robot.store, REPO, f"v{NEW}", choose).name == "another-arm"
    acts(robot.store, ACTIVE)


def test_the_document_lists_these_attacks() -> None:
    lines = (ROOT / "docs" / "distribution.md").read_text().splitlines()
    attacks = (*ON_THE_HUB, *ON_THE_DEVICE, *MORE_ON_THE_DEVICE, *BESIDE_THE_BUNDLES)
    assert {line for line in lines if line.endswith("` |")} == {attack.row for attack in attacks}
