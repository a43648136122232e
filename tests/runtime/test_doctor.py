"""Verdicts on devices that are not here, from their facts, over the manifest of a real bundle.

`pi05 doctor --json` prints the facts of a device as tests/data/devices keeps them; each file's `source` says
whether it was recorded so.
"""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from pi05_runtime.doctor import Accepted, Facts, Refused, Verdict, choose, judge, judge_all
from pi05_runtime.doctor.device import Gpu
from pi05_runtime.doctor.judging import judge_device
from pi05_runtime.doctor.rules import MARGIN
from pi05_runtime.errors import TargetError
from pi05_runtime.lock import Lock
from pi05_runtime.manifest import File, Manifest, build_files, read_manifest
from pi05_runtime.targets import TARGETS
from tests.pipeline import ROOT

DEVICES = ROOT / "tests" / "data" / "devices"
THOR, THOR_72 = "thor-jetpack-7.0", "thor-jetpack-7.2.0"
CPU, TRT, RTX, ADA = "cpu-ort", "sm110-trt", "sm120-rtx", "sm89-rtx"
Change = Callable[[Facts], Facts]


def device(name: str) -> Facts:
    return msgspec.json.decode((DEVICES / f"{name}.json").read_bytes(), type=Facts)


def changed(facts: Facts, **fields: object) -> Facts:
    return msgspec.structs.replace(facts, **fields)


def with_gpu(facts: Facts, **fields: object) -> Facts:
    assert isinstance(facts.gpu, Gpu)
    return changed(facts, gpu=msgspec.structs.replace(facts.gpu, **fields))


def without(facts: Facts, library: str) -> Facts:
    versions = {name: version for name, version in facts.versions.items() if name != library}
    return changed(facts, versions=versions, problems=facts.problems | {library: "it is not there"})


def about(verdict: Verdict) -> list[str]:
    return [reason.about for reason in (verdict.notes if isinstance(verdict, Accepted) else verdict.reasons)]


@pytest.fixture(scope="module")
def manifest(workspace: Path) -> Manifest:
    """Of a bundle for the CPU, with entries for JetPack 7.0 and RTX 50 added."""
    found = read_manifest(workspace / "artifacts" / "bundle")
    cpu = found.targets[CPU]
    locks = (
        (TRT, Lock("tensorrt", "10.13.3.9", "11.0")),
        (RTX, Lock("tensorrt_rtx", "1.7.1.116", "12.0")),
    )
    targets = {name: msgspec.structs.replace(cpu, lock=lock) for name, lock in locks}
    return msgspec.structs.replace(found, targets=found.targets | targets)


def big(manifest: Manifest, size: int) -> Manifest:
    """Its first file takes `size` bytes more."""
    name = manifest.token_embedding
    files = manifest.files | {name: File(manifest.files[name].size + size, "")}
    return msgspec.structs.replace(manifest, files=files)


@pytest.mark.parametrize(
    ("name", "accepted", "refused", "chosen"),
    [
        ("thor-jetpack-7.0", {CPU: [], TRT: []}, {RTX: ["chip"]}, TRT),
        ("thor-jetpack-7.1", {CPU: ["power"], TRT: ["power"]}, {RTX: ["chip"]}, TRT),
        ("thor-jetpack-7.2.0", {CPU: []}, {TRT: ["engines"], RTX: ["chip"]}, TRT),
        ("rtx-5090", {CPU: [], RTX: []}, {TRT: ["chip"]}, RTX),
        ("h100", {CPU: ["library"]}, {TRT: ["chip"], RTX: ["chip"]}, CPU),
    ],
)
def test_devices(
    manifest: Manifest,
    name: str,
    accepted: dict[str, list[str]],
    refused: dict[str, list[str]],
    chosen: str,
) -> None:
    facts = device(name)
    verdicts = {verdict.target: verdict for verdict in judge_all(facts, manifest)}
    assert {t: about(v) for t, v in verdicts.items() if isinstance(v, Accepted)} == accepted
    assert {t: about(v) for t, v in verdicts.items() if isinstance(v, Refused)} == refused
    assert choose(facts, manifest) == chosen


@pytest.mark.parametrize("path", sorted(DEVICES.glob("*.json")), ids=lambda path: path.stem)
def test_facts_say_where_they_are_from(path: Path) -> None:
    source = device(path.stem).source
    assert source == "read on the device" or ("from documents" in source and "not a recording" in source)


def test_a_jetpack_upgrade_is_told_with_both_versions_and_the_command(manifest: Manifest) -> None:
    verdict = judge(device(THOR_72), manifest, TRT)
    assert isinstance(verdict, Refused) and verdict.rebuild
    assert [str(reason) for reason in verdict.reasons] == [
        "engines: tensorrt 10.16.2.10 found, 10.13.3.9, which built them, expected; "
        "pi05 rebuild BUNDLE --target sm110-trt --out ENGINES"
    ]


@pytest.mark.parametrize(
    ("change", "expected", "found", "advice"),
    [
        (lambda f: with_gpu(f, cuda="12.9", driver="575.1"), ["driver"], "575.1 for CUDA 12.9", "580"),
        (lambda f: with_gpu(f, cuda="9.2"), ["driver"], "a driver for CUDA 9.2", "580"),
        (lambda f: without(f, "cuda-python"), ["cuda-python"], "it is not there", "pi05-runtime[trt]"),
        (
            lambda f: without(f, "tensorrt"),
            ["library"],
            "no tensorrt (it is",
            "apt install python3-libnvinfer",
        ),
        (
            lambda f: without(without(f, "tensorrt"), "cuda-python"),
            ["cuda-python", "library"],
            "it is",
            "pip",
        ),
        (
            lambda f: changed(f, memory_free=MARGIN),
            ["memory"],
            "1.1 GB free of 131.0",
            "close other programs",
        ),
        (lambda f: changed(f, memory=MARGIN, memory_free=9), ["memory"], "of 1.1 GB", "with more memory"),
        (lambda f: changed(f, disk_free=1000, root="/data"), ["disk"], "0.0 GB free in /data", "pi05 gc"),
        (lambda f: changed(f, disk_free=0, memory_free=0), ["memory", "disk"], "0.0 GB", "close"),
        (lambda f: with_gpu(f, compute_capability="8.7"), ["chip"], "NVIDIA Thor of .* 8.7", "this device"),
        (
            lambda f: changed(f, gpu=None, problems={"gpu": "no NVIDIA driver"}),
            ["chip"],
            "no GPU (no NVIDIA driver)",
            "nvidia-smi",
        ),
    ],
)
def test_rules(manifest: Manifest, change: Change, expected: list[str], found: str, advice: str) -> None:
    facts = device(THOR)
    assert isinstance(judge(facts, manifest, TRT), Accepted)
    verdict = judge(change(facts), manifest, TRT)
    assert isinstance(verdict, Refused) and not verdict.rebuild
    assert about(verdict) == expected
    first = verdict.reasons[0]
    assert all(part in first.found for part in found.split(" .* ")) and advice in first.advice


def test_a_gpu_with_memory_of_its_own_is_judged_by_it(manifest: Manifest) -> None:
    workstation = changed(device("rtx-5090"), memory_free=30_000_000_000)
    heavy = big(manifest, 20_000_000_000)
    assert isinstance(judge(with_gpu(workstation, memory_free=22_000_000_000), heavy, RTX), Accepted)
    verdict = judge(with_gpu(workstation, memory_free=21_000_000_000), heavy, RTX)
    assert about(verdict) == ["memory"]
    assert about(judge(with_gpu(workstation, memory_free=0), heavy, CPU)) == []


def test_files_that_are_present_need_no_disk(manifest: Manifest) -> None:
    full = changed(device(THOR), disk_free=0)
    assert about(judge(full, manifest, TRT)) == ["disk"]
    assert isinstance(judge(full, manifest, TRT, present=manifest.files), Accepted)


def test_the_exact_size_is_enough(manifest: Manifest) -> None:
    size = sum(manifest.files[name].size for name in manifest.targets[TRT].files)
    facts = device(THOR)
    just = changed(facts, disk_free=size, memory_free=size + MARGIN)
    assert isinstance(judge(just, manifest, TRT), Accepted)
    assert about(judge(changed(just, disk_free=size - 1), manifest, TRT)) == ["disk"]
    assert about(judge(changed(just, memory_free=size + MARGIN - 1), manifest, TRT)) == ["memory"]


def test_a_target_of_a_later_release_is_refused(manifest: Manifest) -> None:
    targets = {"sm130-plan": manifest.targets[CPU]}
    verdict = judge(device(THOR), msgspec.structs.replace(manifest, targets=targets), "sm130-plan")
    assert about(verdict) == ["target"] and isinstance(verdict, Refused)
    assert "update pi05-runtime" in verdict.reasons[0].advice


def test_a_target_that_the_bundle_lacks_is_listed_where_it_can_be_rebuilt(manifest: Manifest) -> None:
    lean = msgspec.structs.replace(manifest, targets={CPU: manifest.targets[CPU]})
    verdicts = {v.target: v for v in judge_all(device(THOR), lean)}
    assert verdicts.keys() == {CPU, TRT}
    verdict = verdicts[TRT]
    assert isinstance(verdict, Refused) and verdict.rebuild and about(verdict) == ["engines"]
    assert verdict.reasons[0].found == "targets ['cpu-ort'] in the bundle"
    assert "pi05 rebuild BUNDLE --target sm110-trt" in verdict.reasons[0].advice
    assert choose(device(THOR), lean) == TRT
    assert {v.target for v in judge_all(device("h100"), lean)} == {CPU}
    needed = sum(lean.files[name].size for name in build_files(lean, TRT))
    assert about(judge(changed(device(THOR), disk_free=needed), lean, TRT)) == ["engines", "disk"]


def test_onnx_in_a_recipe_that_the_chip_lacks_cannot_be_rebuilt(manifest: Manifest) -> None:
    variants = tuple(msgspec.structs.replace(v, recipe="nvfp4") for v in manifest.components["prefill"])
    fp4 = msgspec.structs.replace(manifest, components=manifest.components | {"prefill": variants})
    ada = with_gpu(device("rtx-5090"), compute_capability="8.9")
    verdict = judge(ada, fp4, ADA)
    assert isinstance(verdict, Refused) and not verdict.rebuild
    assert "export again" in verdict.reasons[0].advice and "rebuild" not in verdict.reasons[0].advice
    assert ADA not in {v.target for v in judge_all(ada, fp4)}
    assert ADA in {v.target for v in judge_all(ada, manifest)}


def test_the_cpu_has_no_engines_to_rebuild(manifest: Manifest) -> None:
    gpu_only = msgspec.structs.replace(manifest, targets={TRT: manifest.targets[TRT]})
    verdict = judge(device(THOR), gpu_only, CPU)
    assert isinstance(verdict, Refused) and not verdict.rebuild
    assert "export again" in verdict.reasons[0].advice
    assert [v.target for v in judge_all(device(THOR), gpu_only)] == [TRT]


def test_another_onnx_runtime_is_a_note(manifest: Manifest) -> None:
    facts = device("h100")
    other = changed(facts, versions=facts.versions | {"onnxruntime": "1.22.0"})
    verdict = judge(other, manifest, CPU)
    assert isinstance(verdict, Accepted) and about(verdict) == ["library"]
    assert verdict.notes[0].found == "onnxruntime 1.22.0"


def test_no_accepted_target_is_an_error_with_every_reason(manifest: Manifest) -> None:
    with pytest.raises(TargetError) as caught:
        choose(without(device("h100"), "onnxruntime"), manifest)
    text = str(caught.value)
    assert "cpu-ort: library: no onnxruntime" in text and "pip install 'pi05-runtime[ort]'" in text
    assert "sm110-trt: chip" in text and "sm120-rtx: chip" in text


def test_without_a_bundle_chip_and_library_are_judged() -> None:
    verdicts = {target: judge_device(device(THOR_72), target) for target in TARGETS}
    assert {t for t, v in verdicts.items() if isinstance(v, Accepted)} == {CPU, TRT, "sm110-plan"}
    assert about(judge_device(without(device(THOR), "tensorrt"), TRT)) == ["library"]
