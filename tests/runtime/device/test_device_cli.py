"""The life of a bundle on a device, as a fleet's scripts drive it: by the command and its exit codes."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pi05_runtime import cli, load_active
from pi05_runtime.device.store import Store
from pi05_runtime.errors import BundleError, DeviceError
from tests.pipeline import TARGET
from tests.runtime.bundle_edits import edited
from tests.runtime.device.stores import REPO

Pi05 = Callable[..., tuple[int, str, str]]


@pytest.fixture
def pi05(store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Pi05:
    """Runs the command on the store; (exit code, output, errors)."""
    monkeypatch.setenv("PI05_ROOT", str(store.root))

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pi05", *map(str, arguments)])
        capsys.readouterr()  # of the publisher
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return (code, *capsys.readouterr())

    return run


def test_from_pull_to_rollback(
    pi05: Pi05, published: Path, upload: Callable[[Path], None], store: Store
) -> None:
    ids: list[str] = []
    for version in ("0.2.0", "0.3.0"):
        with edited(published) as manifest:
            manifest["version"] = version
        upload(published)
        code, out, error = pi05("pull", f"{REPO}@v{version}")
        assert code == 0, error
        ids.append(out.split()[0])
        assert f"{version} for cpu-ort" in out
        code, _, error = pi05("activate", ids[-1])
        assert code == 9 and f"run `pi05 test {ids[-1]}`" in error
        assert pi05("verify", ids[-1])[0] == 0
        code, out, error = pi05("test", ids[-1])
        assert code == 0 and "median" in out, error
        assert pi05("activate", ids[-1])[0] == 0
    old, new = ids
    status = json.loads(pi05("status", "--json")[1])
    assert status["slots"] == {"active": new, "previous": old}
    assert {bundle["state"] for bundle in status["bundles"]} == {"tested"}
    assert pi05("rollback")[1] == f"active {old}, previous {new}\n"
    assert f"{old}  active" in pi05("status")[1]
    assert pi05("gc") == (0, "0.0 MB freed\n", "")
    with load_active(steps=1) as policy:
        assert policy.manifest.version == "0.2.0" and policy.steps == 1
    manifest_path = store.bundle(old) / "manifest.json"
    manifest_path.write_bytes(manifest_path.read_bytes().replace(b"0.2.0", b"0.2.1"))
    with pytest.raises(BundleError, match="is signed: the signature is of another bundle"):
        load_active()


def test_a_pull_tells_scripts_what_status_will(pi05: Pi05, published: Path) -> None:
    code, out, error = pi05("pull", REPO, "--json")
    assert code == 0, error
    record = json.loads(out)
    assert (record["repo"], record["target"], record["state"]) == (REPO, TARGET, "verified")
    assert json.loads(pi05("status", "--json")[1])["bundles"] == [record]


def test_nothing_is_active_at_first(store: Store) -> None:
    with pytest.raises(DeviceError, match="no active bundle in"):
        load_active(store.root)


def test_doctor_says_what_runs(pi05: Pi05, bundle: Path) -> None:
    code, out, _ = pi05("doctor", bundle)
    assert code == 0 and "cpu-ort" in out and "accepted" in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["verify", "nope"], 9, "no bundle 'nope' on this device"),
        (["rollback"], 9, "nothing to roll back to"),
        (["pull", "acme/none"], 10, "not found: check repository"),
        (["pull", f"{REPO}@main", "--offline"], 9, "was not pulled to this device before"),
    ],
)
def test_refusals(pi05: Pi05, published: Path, arguments: list[str], code: int, message: str) -> None:
    found, _, error = pi05(*arguments)
    assert found == code and message in error
