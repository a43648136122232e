"""Real engines, built by TensorRT for RTX with no GPU, and the evidence that each carries."""

import json
import os
import re
import sys
from pathlib import Path

import msgspec
import onnx
import pytest

from pi05_runtime.build import BuildOptions, Built, build_engine
from pi05_runtime.build.contract import Refused
from pi05_runtime.build.ladder import WORKER
from pi05_runtime.child import run_child
from pi05_runtime.errors import EngineError, TargetError
from pi05_runtime.layer_table import Table
from tests.runtime.build_onnx import (
    SIGNATURES,
    TOKENS,
    is_the_same_anywhere,
    request,
    write_component,
)

OPTIONS = BuildOptions(minutes=1, workspace_gib=1)
BUCKETS = (4, 6)


def build(target: str, folders: dict[str, list[Path]], out: Path) -> Built:
    return build_engine(target, folders, SIGNATURES, BUCKETS, OPTIONS, out)


@pytest.mark.parametrize(
    ("target", "recipe"),
    [
        ("sm89-rtx", "bf16"),
        ("sm89-rtx", "fp8"),
        ("sm89-rtx", "int8"),
        ("sm89-rtx", "int4"),
        ("sm120-rtx", "fp8"),
        ("sm120-rtx", "nvfp4"),
    ],
)
def test_engine_runs_as_its_recipe_says(target: str, recipe: str, tmp_path: Path) -> None:
    built = build(
        target, {"prefill": [write_component(tmp_path / "onnx", "prefill", recipe)]}, tmp_path / "out"
    )
    assert built.recipes == {"prefill": recipe}
    assert built.layers == {recipe: 2}
    assert [(a.optimization_level, a.outcome) for a in built.attempts] == [(3, "built")]
    assert built.seconds > 0 and built.peak_gb > 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {built.file, "layers.json", "layers.md"}
    evidence = json.loads((tmp_path / "out" / "layers.json").read_text())
    assert (evidence["source"], evidence["profiles"], evidence["faults"]) == ("builder log", 2, [])
    assert f"| prefill.a | {recipe} | {recipe} |" in (tmp_path / "out" / "layers.md").read_text()


def test_the_same_onnx_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = write_component(tmp_path / "onnx", "prefill", "fp8")
    one, other = (build("sm120-rtx", {"prefill": [folder]}, tmp_path / name) for name in ("one", "other"))
    assert (one.attempts, one.layers) == (other.attempts, other.layers)
    for file in (one.file, "layers.json", "layers.md"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


def test_vision_and_prefill_are_one_network(tmp_path: Path) -> None:
    folders = {
        "vision": [write_component(tmp_path / "vision", "vision", "bf16")],
        "prefill": [write_component(tmp_path / "prefill", "prefill", "fp8")],
    }
    built = build("sm120-rtx", folders, tmp_path / "out")
    assert built.file == "prefix.engine"
    assert built.recipes == {"vision": "bf16", "prefill": "fp8"}
    assert built.layers == {"bf16": 2, "fp8": 2}


def test_fixed_shapes_need_no_profile(tmp_path: Path) -> None:
    built = build(
        "sm89-rtx", {"vision": [write_component(tmp_path / "v", "vision", "fp8")]}, tmp_path / "out"
    )
    assert built.layers == {"fp8": 2}
    assert json.loads((tmp_path / "out" / "layers.json").read_text())["profiles"] == 1


@pytest.mark.parametrize(
    ("built", "restored", "found"),
    [
        ("bf16", "", "bf16 x bf16"),
        ("fp8", "input", "fp8 x bf16"),
        ("fp8", "weight", "bf16 x fp8"),
    ],
)
def test_layer_that_does_not_run_as_planned(
    built: str, restored: str, found: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write_component(tmp_path / "onnx", "prefill", built, "fp8", restored)
    with pytest.raises(EngineError) as error:
        build("sm120-rtx", {"prefill": [folder]}, tmp_path / "out")
    expected = f"layer evidence: prefill.a: {found} found, both operands fp8 in each of 2 profile(s) expected"
    for level in (3, 2):
        assert f"fp8, optimization level {level}: {expected}, and 1 more layers" in str(error.value)
    assert "LayerType: " in str(error.value), "the engine's own line"
    assert "trying sm120-rtx prefill, fp8, optimization level 2" in capfd.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_recipe_that_the_chip_lacks_falls_back(tmp_path: Path) -> None:
    folders = [write_component(tmp_path / recipe, "prefill", recipe) for recipe in ("nvfp4", "fp8")]
    built = build("sm89-rtx", {"prefill": folders}, tmp_path / "out")
    assert built.recipes == {"prefill": "fp8"} and built.layers == {"fp8": 2}
    assert [(a.recipes["prefill"], a.optimization_level) for a in built.attempts] == [
        ("nvfp4", 3),
        ("nvfp4", 2),
        ("fp8", 3),
    ]
    refusal = built.attempts[0].outcome
    assert refusal.startswith("refused: ") and "Cannot compile for target(s) sm89" in refusal
    assert is_the_same_anywhere(refusal)


@pytest.mark.parametrize("damage", ["bf16.onnx", "weights.bin"])
def test_onnx_that_does_not_parse_is_left_for_the_fallback(
    damage: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folders = [write_component(tmp_path / "with a space" / r, "prefill", r) for r in ("nvfp4", "fp8")]
    os.truncate(folders[0] / damage, 500)
    built = build("sm120-rtx", {"prefill": folders}, tmp_path / "out")
    refused, attempt = built.attempts
    assert (refused.recipes, attempt.recipes) == ({"prefill": "nvfp4"}, {"prefill": "fp8"})
    assert refused.outcome.startswith("prefill (nvfp4): tensorrt_rtx ")
    assert "does not parse its ONNX: " in refused.outcome
    assert "space" not in refused.outcome and is_the_same_anywhere(refused.outcome)
    said = capfd.readouterr().err
    assert f"{folders[0]}/bf16.onnx: " in said, "the whole message is for whoever reads along"
    assert re.search(
        r"fp8, optimization level 3: built in [\d.]+ s, peak [\d.]+ GB, linear layers 2 fp8\n", said
    )


@pytest.mark.parametrize("damage", ["onnx", "weights", "gone", "table", "other"])
def test_broken_onnx_ends_at_once(damage: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = write_component(tmp_path / "onnx", "prefill", "fp8")
    if damage == "onnx":
        os.truncate(folder / "bf16.onnx", 500)
    elif damage == "weights":
        os.truncate(folder / "weights.bin", 500)
    elif damage == "gone":
        (folder / "weights.bin").unlink()
    elif damage == "table":
        (folder / "table.json").write_text("{}")
    else:
        table = msgspec.json.decode((folder / "table.json").read_bytes(), type=Table)
        table = msgspec.structs.replace(table, component="denoise")
        (folder / "table.json").write_bytes(msgspec.json.encode(table))
    message = {
        "onnx": "does not parse",
        "weights": "does not parse",
        "gone": "weights.bin is missing",
        "table": "not a table of layers",
        "other": "component denoise found, prefill expected",
    }[damage]
    with pytest.raises(EngineError, match=message.replace("(", r"\(")):
        build("sm120-rtx", {"prefill": [folder]}, tmp_path / "out")
    assert "trying" not in capfd.readouterr().err


@pytest.mark.parametrize("change", ["name", "type", "size"])
def test_ports_are_those_of_the_component(change: str, tmp_path: Path) -> None:
    folder = write_component(tmp_path / "onnx", "vision", "bf16")
    model = onnx.load(folder / "bf16.onnx", load_external_data=False)
    port = model.graph.input[0]
    if change == "name":
        port.name = model.graph.node[0].input[0] = "pictures"
    elif change == "type":
        port.type.tensor_type.elem_type = onnx.TensorProto.INT32
    else:
        port.type.tensor_type.shape.dim[0].dim_value = TOKENS + 1
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    onnx.save(model, folder / "bf16.onnx")
    with pytest.raises(
        EngineError, match=r"inputs .* found in the ONNX, .*'images': \('FLOAT', \(8, 256\)\)"
    ):
        build("sm120-rtx", {"vision": [folder]}, tmp_path / "out")


@pytest.mark.parametrize("fault", ["full", "not writable"])
def test_file_that_cannot_be_written_ends_the_build(fault: str, tmp_path: Path) -> None:
    folder = write_component(tmp_path / "onnx", "vision", "bf16")
    engine = tmp_path / "vision.engine"
    if fault == "full":
        engine.symlink_to("/dev/full")
    else:
        engine.mkdir()
    decoder = msgspec.json.Decoder(Refused)
    answer = run_child(WORKER, request(folder, tmp_path), decoder, minutes=1, quiet=False)
    assert isinstance(answer, Refused)
    assert answer.ends_build == "EngineError" and "see that there is space" in answer.reason
    assert is_the_same_anywhere(answer.reason)


def test_library_comes_not_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_component(tmp_path / "onnx", "vision", "bf16")
    (tmp_path / "tensorrt_rtx.py").write_text("raise ImportError('not the library')")
    monkeypatch.chdir(tmp_path)
    assert build("sm120-rtx", {"vision": [folder]}, tmp_path / "out").layers == {"bf16": 2}


def test_target_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_component(tmp_path / "onnx", "vision", "bf16")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "lib"), *sys.path]))
    with pytest.raises(TargetError, match=r"needs tensorrt, .*libnvinfer"):
        build("sm110-trt", {"vision": [folder]}, tmp_path / "out")


def test_what_cannot_be_built(tmp_path: Path) -> None:
    folder = write_component(tmp_path / "onnx", "vision", "bf16")
    with pytest.raises(TargetError, match="no engines to build"):
        build("cpu-ort", {"vision": [folder]}, tmp_path / "out")
    with pytest.raises(EngineError, match=r"\['denoise', 'vision'\] found"):
        build("sm89-rtx", {"vision": [folder], "denoise": [folder]}, tmp_path / "out")
