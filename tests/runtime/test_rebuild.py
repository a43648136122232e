"""Engines that a device builds itself: built for real, held to the golden sample, tied to their bundle.

There is no GPU here, so what answers for the engines is the CPU's twin: see `device` in conftest.py.
"""

import shutil
from pathlib import Path

import msgspec
import pytest

from pi05_runtime import load
from pi05_runtime import lock as lock_module
from pi05_runtime.build import BuildOptions
from pi05_runtime.errors import BundleError, GateError, TargetError
from pi05_runtime.manifest import read_manifest
from pi05_runtime.rebuild import reason_to_rebuild, rebuild
from pi05_runtime.rebuilt import RECORD, Rebuilt
from tests.runtime.bundle_edits import edited, onnx_file
from tests.runtime.conftest import RTX

OPTIONS = BuildOptions(minutes=5, workspace_gib=1, timing_cache=None)


@pytest.fixture(scope="module")
def engines(workspace: Path, device: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines rebuilt from the pristine bundle. Copy them to change them."""
    out = tmp_path_factory.mktemp("rebuilt") / "engines"
    rebuild(workspace / "artifacts" / "bundle", RTX, out, OPTIONS)
    return out


@pytest.fixture
def own(engines: Path, tmp_path: Path) -> Path:
    """Rebuilt engines of one's own, to damage."""
    return shutil.copytree(engines, tmp_path / "engines")


def record(folder: Path) -> Rebuilt:
    return msgspec.json.decode((folder / RECORD).read_bytes(), type=Rebuilt)


def test_without_the_gpu_nothing_is_built(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "device_capability", lambda: None)
    with pytest.raises(TargetError, match=r"sm120-rtx needs .* 12\.0, this machine has no GPU"):
        rebuild(bundle, RTX, tmp_path / "engines", OPTIONS)
    assert list(tmp_path.iterdir()) == [bundle]


def test_a_bundle_without_the_target_gets_engines_that_act(bundle: Path, engines: Path) -> None:
    manifest, made = read_manifest(bundle), record(engines)
    assert reason_to_rebuild(bundle, RTX) == f"the bundle has no engines for {RTX}"
    assert [attempt.outcome for e in made.engines.values() for attempt in e.attempts] == ["built"] * 3
    assert made.engines["prefill"].layers["fp8"] == 9
    assert {score.steps for score in made.golden} == set(manifest.golden.steps)
    assert all(score.cosine >= score.threshold for score in made.golden)
    policy = load(bundle, RTX, engines=engines)
    assert policy.steps == manifest.default_steps
    assert policy.identity["target"] == RTX and "engines" in policy.identity


@pytest.mark.usefixtures("device")
def test_engines_that_fail_the_golden_sample_are_not_kept(bundle: Path, tmp_path: Path) -> None:
    with edited(bundle) as manifest:
        manifest["golden"]["cosine"]["fp8"] = 0.9999999
    out = tmp_path / "engines"
    with pytest.raises(GateError, match="self-test of sm120-rtx failed"):
        rebuild(bundle, RTX, out, OPTIONS)
    assert list(tmp_path.iterdir()) == [bundle]


@pytest.mark.usefixtures("device")
def test_damaged_onnx_is_refused_before_it_is_parsed(bundle: Path, tmp_path: Path) -> None:
    path = bundle / onnx_file(bundle, "prefill", "bf16.onnx")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"prefill/fp8/bf16\.onnx: \d+ bytes found"):
        rebuild(bundle, RTX, tmp_path / "engines", OPTIONS)


def test_rebuilt_engines_belong_to_one_target(bundle: Path, engines: Path) -> None:
    with pytest.raises(TargetError, match="engines for sm120-rtx found, sm89-rtx expected"):
        load(bundle, "sm89-rtx", engines=engines)


def test_rebuilt_engines_belong_to_one_bundle(bundle: Path, engines: Path) -> None:
    with edited(bundle) as manifest:
        manifest["version"] = "9"
    with pytest.raises(BundleError, match="built from the bundle with manifest"):
        load(bundle, RTX, engines=engines)


def test_a_tampered_engine_is_not_loaded(bundle: Path, own: Path) -> None:
    engine = own / record(own).engines["denoise"].file
    data = engine.read_bytes()
    engine.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BundleError, match=r"sha256 .* found.*run `pi05 rebuild` again"):
        load(bundle, RTX, engines=own)


def test_a_damaged_record_is_refused(bundle: Path, own: Path) -> None:
    (own / RECORD).write_text("{}")
    with pytest.raises(BundleError, match=r"rebuilt\.json: .*run `pi05 rebuild` again"):
        load(bundle, RTX, engines=own)


def test_another_version_of_the_library_is_refused_with_both(bundle: Path, own: Path) -> None:
    made = record(own)
    old = msgspec.structs.replace(made, lock=msgspec.structs.replace(made.lock, version="1.0.0.1"))
    (own / RECORD).write_bytes(msgspec.json.encode(old))
    with pytest.raises(TargetError, match=r"tensorrt_rtx 1\.0\.0\.1, this machine has .*`pi05 rebuild`"):
        load(bundle, RTX, engines=own)


def test_a_record_of_engines_that_did_not_pass_is_refused(bundle: Path, own: Path) -> None:
    made = record(own)
    failed = msgspec.structs.replace(made.golden[0], cosine=0.5)
    engine = msgspec.structs.replace(made.engines["denoise"], file="../denoise.engine")
    for change, message in (
        ({"golden": ()}, r"golden: steps \[\] found"),
        ({"golden": (failed, *made.golden[1:])}, "the engines did not pass at"),
        ({"engines": {"denoise": made.engines["denoise"]}}, r"engines: \['denoise'\] found"),
        ({"engines": made.engines | {"denoise": engine}}, r"files: lacks \['\.\./denoise\.engine'\]"),
        (
            {
                "engines": made.engines | {"denoise": engine},
                "files": made.files | {engine.file: made.files[made.engines["denoise"].file]},
            },
            "only names inside the folder",
        ),
    ):
        (own / RECORD).write_bytes(msgspec.json.encode(msgspec.structs.replace(made, **change)))
        with pytest.raises(BundleError, match=rf"{message}.*run `pi05 rebuild` again"):
            load(bundle, RTX, engines=own)


@pytest.mark.usefixtures("device")
def test_only_a_folder_of_rebuilt_engines_is_replaced(bundle: Path, engines: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious").touch()
    for out, message in (
        (tmp_path / "data", "holds no rebuilt engines"),
        (tmp_path / "data" / "precious", "holds no rebuilt engines"),
        (bundle, "holds the bundle or lies in it"),
        (bundle / "engines", "holds the bundle or lies in it"),
        (tmp_path, "holds the bundle or lies in it"),
    ):
        with pytest.raises(BundleError, match=message):
            rebuild(bundle, RTX, out, OPTIONS)
    assert (tmp_path / "data" / "precious").exists()


@pytest.mark.usefixtures("device")
def test_engines_of_this_version_are_rebuilt_only_if_they_fail(
    bundle: Path, engines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle whose own engines are those that were rebuilt."""
    made = record(engines)
    with edited(bundle) as manifest:
        shared = [manifest[n] for n in ("tokenizer", "token_embedding", "schedule")]
        files = [*shared, manifest["golden"]["file"], *made.files]
        entry = {"engines": made.engines, "files": files, "lock": made.lock}
        manifest["targets"][RTX] = msgspec.to_builtins(entry)
        manifest["files"] |= msgspec.to_builtins(made.files)
    shutil.copytree(engines, bundle, dirs_exist_ok=True)
    assert reason_to_rebuild(bundle, RTX) is None
    with edited(bundle) as manifest:
        manifest["golden"]["cosine"]["fp8"] = 0.9999999
    assert "self-test of sm120-rtx failed" in str(reason_to_rebuild(bundle, RTX))
    monkeypatch.setattr(lock_module, "device_capability", lambda: "8.9")
    with pytest.raises(TargetError, match=r"12\.0, this machine has 8\.9"):
        reason_to_rebuild(bundle, RTX)


def test_a_target_that_compiles_nothing_has_nothing_to_rebuild(bundle: Path) -> None:
    with pytest.raises(TargetError, match="it runs the bundle's files as they are"):
        reason_to_rebuild(bundle, "cpu-ort")


def test_a_missing_library_is_named(bundle: Path) -> None:
    with pytest.raises(TargetError, match="needs tensorrt, which does not import here"):
        reason_to_rebuild(bundle, "sm110-trt")
