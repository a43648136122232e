"""params.yaml is checked on load, and every refusal names the field."""

import shutil
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from export.params import load_params
from pi05_runtime.errors import ParamsError
from pi05_runtime.targets import RECIPES, coarsest
from tests.pipeline import change_params

THRESHOLDS = {"bf16": 0.9995, "int8": 0.99, "fp8": 0.99, "nvfp4": 0.97, "int4": 0.97}


@pytest.fixture
def folder(tmp_path: Path, root: Path) -> Path:
    """A folder with the committed params.yaml."""
    shutil.copy(root / "params.yaml", tmp_path)
    return tmp_path


def refusal(folder: Path) -> str:
    with pytest.raises(ParamsError) as caught:
        load_params(folder / "params.yaml")
    assert "params.yaml" in str(caught.value)
    return str(caught.value)


def test_the_committed_params_load(root: Path):
    params = load_params(root / "params.yaml")
    assert params.checkpoint.layout == "openpi"
    assert params.targets == ("cpu-ort",)


BAD: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "unknown key": ({"export__step": 3}, ("unknown field `step`", "$.export")),
    "unknown key at the top": ({"gate": {}}, ("unknown field `gate`",)),
    "wrong type": ({"export__default_steps": "ten"}, ("$.export.default_steps", "`int`")),
    "number for a text": ({"bundle__version": 0.1}, ("$.bundle.version", "`str`")),
    "unknown layout": ({"checkpoint__layout": "pytorch"}, ("$.checkpoint.layout", "pytorch")),
    "unknown recipe": ({"components__prefill__recipe": "int2"}, ("$.components.prefill.recipe", "int2")),
    "unknown component": ({"components__decoder": {"recipe": "bf16"}}, ("$.components", "decoder")),
    "one component": ({"components": {"vision": {"recipe": "bf16"}}}, ("$.components", "prefill")),
    "a convention, which the layout fixes": (
        {"checkpoint__interface__convention": "lerobot"},
        ("$.checkpoint.interface", "convention"),
    ),
    "a camera twice": ({"checkpoint__interface__cameras": ["a", "a"]}, ("$.checkpoint.interface", "twice")),
    "a fallback that is no finer": (
        {"components__prefill": {"recipe": "fp8", "fallback": "int4"}},
        ("$.components", "fallback int4 must be finer than recipe fp8"),
    ),
    "a recipe that a target's chip lacks": (
        {"targets": ["sm89-rtx"], "components__prefill": {"recipe": "nvfp4"}},
        ("components.prefill: sm89-rtx has no nvfp4", "fallback"),
    ),
    "a whole prefix for a target that compiles nothing": (
        {"build__whole_prefix": ["cpu-ort"]},
        ("build.whole_prefix: ['cpu-ort'] are not among the TensorRT targets []",),
    ),
    "torch-tensorrt without a target for it": (
        {"build__torch_tensorrt": ["vision"]},
        ("build.torch_tensorrt: none of the targets",),
    ),
    "torch-tensorrt for what is quantized": (
        {
            "build__torch_tensorrt": ["vision"],
            "targets": ["sm110-trt"],
            "components__vision__recipe": "fp8",
        },
        ("build.torch_tensorrt: vision is fp8",),
    ),
    "torch-tensorrt for a part of the whole prefix": (
        {
            "build__torch_tensorrt": ["vision"],
            "targets": ["sm110-trt"],
            "build__whole_prefix": ["sm110-trt"],
        },
        ("build.torch_tensorrt: vision is in build.whole_prefix too",),
    ),
    "torch-tensorrt for prefill": ({"build__torch_tensorrt": ["prefill"]}, ("$.build.torch_tensorrt",)),
    "no time to build": ({"build__minutes": 0}, ("$.build.minutes",)),
    "unknown target": ({"targets": ["cpu-ort", "abacus"]}, ("unknown targets ['abacus']", "cpu-ort")),
    "no target": ({"targets": []}, ("targets is empty",)),
    "keep with bf16": ({"components__vision__keep": ["*"]}, ("$.components", "`keep`", "bf16")),
    "default_steps": ({"export__default_steps": 11}, ("default_steps 11 is not one of steps", "$.export")),
    "no steps": ({"export__steps": []}, ("steps must be positive and rise",)),
    "zero steps": ({"export__steps": [0, 10]}, ("steps must be positive and rise", "(0, 10)")),
    "unsorted steps": ({"export__steps": [10, 1]}, ("steps must be positive and rise", "(10, 1)")),
    "gate steps": ({"gates__steps": [1, 12, 11]}, ("gates.steps [11, 12] are not among export.steps",)),
    "no gate steps": ({"gates__steps": []}, ("gates.steps is empty",)),
    "missing component threshold": (
        {"gates__component_cosine": {"bf16": 0.9}},
        ("component_cosine has no threshold for ['int8', 'fp8', 'nvfp4', 'int4']",),
    ),
    "missing action threshold": (
        {"gates__action_cosine": {r: 0.9 for r in RECIPES[:-1]}},
        ("action_cosine has no threshold for ['int4']",),
    ),
    "threshold that always passes": (
        {"gates__action_cosine": THRESHOLDS | {"fp8": 0.0}},
        ("action_cosine must lie between 0 and 1", "fp8"),
    ),
    "threshold that never passes": (
        {"gates__component_cosine": THRESHOLDS | {"int4": 1.0}},
        ("component_cosine must lie between 0 and 1", "int4"),
    ),
    "budget of nothing": ({"gates__budget_ms": {"cpu-ort": 0}}, ("$.gates.budget_ms",)),
    "budget of an unknown target": (
        {"gates__budget_ms": {"abacus": 50}},
        ("gates.budget_ms: unknown targets ['abacus']", "cpu-ort"),
    ),
    "a target that acts and is not built": (
        {"gates__closed_loop__targets": ["sm110-trt"]},
        ("gates.closed_loop.targets: ['sm110-trt'] are not among the targets",),
    ),
    "a target that acts twice": (
        {"gates__closed_loop__targets": ["cpu-ort", "cpu-ort"]},
        ("gates.closed_loop.targets names something twice",),
    ),
    "engines that act nowhere": (
        {"gates__closed_loop__targets": ["cpu-ort"], "gates__closed_loop__tasks": []},
        ("closed_loop.tasks is empty", "$.gates"),
    ),
    "no scenes": ({"gates__closed_loop__scenes": 0}, ("$.gates.closed_loop.scenes", ">= 1")),
    "more than all scenes": ({"gates__closed_loop__success": 1.1}, ("$.gates.closed_loop.success", "<= 1")),
    "a divergence of nothing": (
        {"gates__closed_loop__divergence": 0},
        ("$.gates.closed_loop.divergence", "> 0"),
    ),
    "unsorted buckets": ({"export__prompt_buckets": [64, 32]}, ("prompt_buckets must rise", "(64, 32)")),
    "equal buckets": ({"export__prompt_buckets": [32, 32]}, ("prompt_buckets must rise",)),
    "no buckets": ({"export__prompt_buckets": []}, ("prompt_buckets must rise and not be empty",)),
    "bucket of one": ({"export__prompt_buckets": [1, 32]}, ("smallest prompt bucket", "found 1")),
    "no cameras": ({"checkpoint__interface__cameras": []}, ("$.checkpoint.interface.cameras",)),
    "no horizon": ({"checkpoint__interface__horizon": 0}, ("$.checkpoint.interface.horizon", ">= 1")),
    "prompt format": (
        {"checkpoint__interface__prompt_format": "json"},
        ("$.checkpoint.interface.prompt_format", "json"),
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_an_impossible_choice_is_refused_by_field(folder: Path, kind: str):
    changes, parts = BAD[kind]
    change_params(folder, **changes)
    message = refusal(folder)
    assert not [part for part in parts if part not in message], message


def test_a_missing_field_is_named(folder: Path):
    path = folder / "params.yaml"
    path.write_text(path.read_text().replace("  license: Apache-2.0\n", ""))
    assert "missing required field `license` - at `$.bundle`" in refusal(folder)


def test_a_missing_file_is_refused_with_the_folder(tmp_path: Path):
    with chdir(tmp_path), pytest.raises(ParamsError, match=f"params.yaml not found in {tmp_path}"):
        load_params()


@pytest.mark.parametrize("content", [b"hub: {", b"hub: [1, 2\nexport: 3", b"bundle: \xff\xfe"])
def test_invalid_yaml_is_refused(folder: Path, content: bytes):
    (folder / "params.yaml").write_bytes(content)
    assert "is not YAML" in refusal(folder)


@pytest.mark.parametrize("content", ["", "- hub", "text"])
def test_yaml_that_is_no_mapping_is_refused(folder: Path, content: str):
    (folder / "params.yaml").write_text(content)
    assert "Expected `object`" in refusal(folder)


@pytest.mark.parametrize(
    ("recipes", "expected"),
    [
        (("bf16", "bf16", "bf16"), "bf16"),
        (("fp8", "int8", "bf16"), "fp8"),
        (("nvfp4", "fp8"), "nvfp4"),
        (("bf16", "int4", "nvfp4"), "int4"),
    ],
)
def test_the_coarsest_recipe_is_the_last_of_the_list(recipes: tuple[str, ...], expected: str):
    assert coarsest(recipes) == expected


def test_a_target_takes_the_recipes_that_its_chip_has(folder: Path):
    change_params(
        folder,
        targets=["sm89-rtx", "sm120-rtx"],
        components__prefill={"recipe": "nvfp4", "fallback": "fp8"},
    )
    params = load_params(folder / "params.yaml")
    assert params.recipes("sm120-rtx", "prefill") == ("nvfp4", "fp8")
    assert params.recipes("sm89-rtx", "prefill") == ("fp8",)
