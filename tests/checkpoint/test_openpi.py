"""openpi's converted PyTorch directory through the real stage: the demo's, whole and damaged."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from demo.openpi_layout import stored_name
from demo.train import DEMO
from export.checkpoint.canonical import read_description, read_weights
from export.checkpoint.openpi import UNUSED
from export.model.parameters import FILES
from tests.checkpoint.refusal import STAGE, assert_refused, change_json, change_weights
from tests.pipeline import change_params, run_stage

PALIGEMMA = "paligemma_with_expert.paligemma."
LM_HEAD = f"{PALIGEMMA}lm_head.weight"
EMBED_TOKENS = f"{PALIGEMMA}model.language_model.embed_tokens.weight"
DOWN = "paligemma_with_expert.gemma_expert.model.layers.1.mlp.down_proj.weight"
DOWN_CANONICAL = "expert.layers.1.mlp.down_proj.weight"
Tensors = dict[str, Tensor]


@pytest.fixture
def directory(fresh_workspace: Path) -> Path:
    """The checkpoint directory of `fresh_workspace`."""
    return fresh_workspace / "demo" / "checkpoint"


@pytest.fixture
def weights(directory: Path) -> Path:
    return directory / "model.safetensors"


def canonical(workspace: Path) -> Tensors:
    """What the stage makes of the checkpoint."""
    run_stage(workspace, STAGE)
    return read_weights(*FILES, folder=workspace / "artifacts" / "checkpoint")


def assert_holds(found: Tensors, stored: Tensors) -> None:
    """Every canonical tensor equals the stored one, in its dtype, and nothing else is there."""
    assert {stored_name(name) for name in found} | UNUSED == set(stored)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, stored[stored_name(name)], rtol=0, atol=0)


def test_every_canonical_tensor_equals_the_stored_one(fresh_workspace: Path, weights: Path):
    assert_holds(canonical(fresh_workspace), load_file(weights))


def test_the_description_joins_config_statistics_and_params(fresh_workspace: Path, directory: Path):
    run_stage(fresh_workspace, STAGE)
    description = read_description(fresh_workspace / "artifacts" / "checkpoint")
    interface = description.interface
    statistics = json.loads((directory / "assets/metaworld/norm_stats.json").read_text())["norm_stats"]
    assert description.geometry == DEMO
    assert interface.cameras == ("corner2", "gripperPOV")
    assert (interface.state_dims, interface.action_dims, interface.horizon) == (4, 4, 10)
    assert list(interface.normalization.state.q01) == statistics["state"]["q01"]
    assert list(interface.normalization.actions.q99) == statistics["actions"]["q99"]
    assert set(description.source) == {
        "assets/metaworld/norm_stats.json",
        "config.json",
        "model.safetensors",
    }


def test_a_second_run_writes_the_same_bytes(fresh_workspace: Path):
    def files() -> dict[str, bytes]:
        run_stage(fresh_workspace, STAGE)
        return {p.name: p.read_bytes() for p in (fresh_workspace / "artifacts/checkpoint").iterdir()}

    assert files() == files()


def test_embed_tokens_is_preferred_over_lm_head(fresh_workspace: Path, weights: Path):
    table = torch.randn(1024, 256).bfloat16()
    change_weights(weights, lambda t: t.update({EMBED_TOKENS: table}))
    assert torch.equal(canonical(fresh_workspace)["embedding.weight"], table)


def test_siglip_names_without_the_vision_model_level_are_accepted(fresh_workspace: Path, weights: Path):
    stored = load_file(weights)
    bare = {name.replace(".vision_model.", "."): tensor for name, tensor in stored.items()}
    assert bare.keys() != stored.keys()
    save_file(bare, weights)
    assert_holds(canonical(fresh_workspace), stored)


def test_both_siglip_names_of_one_tensor_are_refused(fresh_workspace: Path, weights: Path):
    old = stored_name("vision.post_layernorm.bias")
    change_weights(weights, lambda t: t.update({old.replace(".vision_model.", "."): t[old].clone()}))
    assert_refused(fresh_workspace, "vision.post_layernorm.bias", "another name")


def shard(weights: Path) -> list[Path]:
    stored = load_file(weights)
    names = sorted(stored)
    files = [weights.with_name(f"model-{i + 1:05}-of-00003.safetensors") for i in range(3)]
    for i, file in enumerate(files):
        save_file({name: stored[name] for name in names[i::3]}, file)
    weights.unlink()
    return files


def test_shards_are_read_as_one_file(fresh_workspace: Path, weights: Path):
    stored = load_file(weights)
    shard(weights)
    assert_holds(canonical(fresh_workspace), stored)


def test_a_tensor_in_two_shards_is_refused(fresh_workspace: Path, weights: Path):
    _, second, third = shard(weights)
    shutil.copy(second, third)
    assert_refused(fresh_workspace, third.name, "is in another shard too")


@pytest.mark.parametrize("size", [lambda n: n // 2, lambda n: n - 1, lambda n: 4, lambda n: 0])
def test_truncated_safetensors_are_refused(fresh_workspace: Path, weights: Path, size: Callable[[int], int]):
    data = weights.read_bytes()
    weights.write_bytes(data[: size(len(data))])
    assert_refused(fresh_workspace, "model.safetensors cannot be opened", f"{size(len(data))} bytes found")


BAD_WEIGHTS: dict[str, tuple[Callable[[Tensors], object], tuple[str, ...]]] = {
    "missing": (lambda t: t.pop(DOWN), (f"missing: {DOWN_CANONICAL}", "expected", "found")),
    "extra": (lambda t: t.update({f"{DOWN}.lora_A": torch.zeros(2)}), ("unexpected:", "weight.lora_A")),
    "extra without a dot": (lambda t: t.update(step=torch.zeros(1)), ("unexpected: step",)),
    "transposed": (
        lambda t: t.update({DOWN: t[DOWN].T.contiguous()}),
        (f"{DOWN_CANONICAL}: shape [256, 128] found, [128, 256] expected", "transposed"),
    ),
    "of another size": (
        lambda t: t.update({DOWN: t[DOWN][:, 1:].contiguous()}),
        (f"{DOWN_CANONICAL}: shape [128, 255] found, [128, 256] expected",),
    ),
    "integer": (
        lambda t: t.update({DOWN: t[DOWN].to(torch.int8)}),
        (f"{DOWN_CANONICAL}: torch.int8 found, a float dtype",),
    ),
    "fp8": (
        lambda t: t.update({DOWN: t[DOWN].to(torch.float8_e4m3fn)}),
        (f"{DOWN_CANONICAL}: torch.float8_e4m3fn found, a float dtype",),
    ),
    "NaN": (
        lambda t: t[DOWN].view(-1)[7].fill_(float("nan")),
        (f"{DOWN_CANONICAL}: 1 of 32768 values are NaN or infinite",),
    ),
    "infinite": (
        lambda t: t[DOWN][:2].fill_(float("inf")),
        (f"{DOWN_CANONICAL}: 512 of 32768 values are NaN or infinite",),
    ),
    "of pi0": (
        lambda t: t.update(
            {"state_proj.weight": torch.zeros(2), "action_time_mlp_in.weight": torch.zeros(2)}
        ),
        ("this is a pi0 checkpoint", "state_proj.weight", "action_time_mlp_in.weight"),
    ),
}


@pytest.mark.parametrize("kind", BAD_WEIGHTS)
def test_bad_weights_are_refused_by_name(fresh_workspace: Path, weights: Path, kind: str):
    change, parts = BAD_WEIGHTS[kind]
    change_weights(weights, change)
    assert_refused(fresh_workspace, *parts)


def test_every_missing_tensor_is_named(fresh_workspace: Path, weights: Path):
    expert = "paligemma_with_expert.gemma_expert.model."
    change_weights(weights, lambda t: [t.pop(n) for n in list(t) if n.startswith(f"{expert}layers.")])
    assert_refused(fresh_workspace, "missing: expert.layers.0.", "expert.layers.2.self_attn.v_proj.weight")


@pytest.mark.parametrize("precision", [torch.float32, torch.float16])
def test_other_float_dtypes_are_kept_as_stored(fresh_workspace: Path, weights: Path, precision: torch.dtype):
    stored = {name: tensor.to(precision) for name, tensor in load_file(weights).items()}
    save_file(stored, weights)
    assert_holds(canonical(fresh_workspace), stored)


BAD_CONFIG: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
    "unknown variant": (
        {"geometry": None, "action_expert_variant": "gemma_9b"},
        ("config.json: unknown variant ['gemma_9b']", "known: ['gemma_2b', 'gemma_300m']"),
    ),
    "variant of another type": ({"geometry": None, "paligemma_variant": ["x"]}, ("unknown variant",)),
    "action_dim": ({"action_dim": 14}, ("config.json: action_dim is 14, 32 expected",)),
    "geometry": ({"geometry": {"vision": {}}}, ("config.json: geometry:", "$.vision")),
    "horizon unstated": ({"action_horizon": None}, ("does not say horizon", "checkpoint.interface")),
}


@pytest.mark.parametrize("kind", BAD_CONFIG)
def test_a_bad_config_is_refused(fresh_workspace: Path, directory: Path, kind: str):
    changes, parts = BAD_CONFIG[kind]
    change_json(directory / "config.json", **changes)
    assert_refused(fresh_workspace, *parts)


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"action_dim": "\xff"}'])
def test_a_config_that_is_no_json_object_is_refused(fresh_workspace: Path, directory: Path, content: bytes):
    (directory / "config.json").write_bytes(content)
    assert_refused(fresh_workspace, "config.json: ", "download it again")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(fresh_workspace: Path, directory: Path, name: str):
    (directory / name).unlink()
    assert_refused(fresh_workspace, name)


def test_missing_statistics_are_asked_for(fresh_workspace: Path, directory: Path):
    shutil.rmtree(directory / "assets")
    assert_refused(fresh_workspace, "norm_stats.json", "found none", "checkpoint.norm_stats")


def test_of_two_statistics_neither_is_guessed(fresh_workspace: Path, directory: Path):
    shutil.copytree(directory / "assets" / "metaworld", directory / "assets" / "droid")
    assert_refused(fresh_workspace, "droid/norm_stats.json", "metaworld/norm_stats.json")


def pin(workspace: Path, path: str, sha256: str) -> None:
    change_params(workspace, checkpoint__norm_stats={"path": path, "sha256": sha256})


def test_params_choose_among_statistics(fresh_workspace: Path, directory: Path):
    shutil.copytree(directory / "assets" / "metaworld", directory / "assets" / "droid")
    data = (directory / "assets" / "droid" / "norm_stats.json").read_bytes()
    pin(fresh_workspace, "demo/checkpoint/assets/droid/norm_stats.json", hashlib.sha256(data).hexdigest())
    run_stage(fresh_workspace, STAGE)


@pytest.mark.parametrize("path", ["elsewhere/norm_stats.json", "demo"])
def test_statistics_that_params_name_in_vain_are_refused(fresh_workspace: Path, path: str):
    pin(fresh_workspace, path, "0" * 64)
    assert_refused(fresh_workspace, f"{path}: ", "checkpoint.norm_stats")


def test_statistics_other_than_the_pinned_ones_are_refused(fresh_workspace: Path):
    pin(fresh_workspace, "demo/checkpoint/assets/metaworld/norm_stats.json", "0" * 64)
    assert_refused(fresh_workspace, "norm_stats.json: sha256 ", f"{'0' * 64} expected")


ENTRY = {"mean": [0] * 4, "std": [1] * 4, "q01": [-1] * 4, "q99": [1] * 4}
BAD_STATISTICS = {
    "no JSON": ("{", "norm_stats.json: "),
    "no norm_stats": (json.dumps({"state": ENTRY}), "`norm_stats`"),
    "no actions": (json.dumps({"norm_stats": {"state": ENTRY}}), "`actions`"),
    "text": (json.dumps({"norm_stats": {"state": ENTRY, "actions": ENTRY | {"std": ["a"]}}}), "actions.std"),
    "NaN": (json.dumps({"norm_stats": {"state": ENTRY | {"q01": [float("nan")] * 4}}}), "JSON"),
    "no quantiles": (
        json.dumps({"norm_stats": {"state": ENTRY, "actions": {"mean": [0] * 4, "std": [1] * 4}}}),
        "statistics of the actions: mode 'quantile' found q01 with 0",
    ),
    "uneven quantiles": (
        json.dumps({"norm_stats": {"state": ENTRY | {"q99": [1] * 3}, "actions": ENTRY}}),
        "statistics of the state: mode 'quantile' found q01 with 4 numbers and q99 with 3",
    ),
    "too wide": (
        json.dumps({"norm_stats": {"state": ENTRY, "actions": {k: v * 9 for k, v in ENTRY.items()}}}),
        "does not say action_dims",
    ),
}


@pytest.mark.parametrize("kind", BAD_STATISTICS)
def test_bad_statistics_are_refused(fresh_workspace: Path, directory: Path, kind: str):
    content, part = BAD_STATISTICS[kind]
    (directory / "assets" / "metaworld" / "norm_stats.json").write_text(content)
    assert_refused(fresh_workspace, part)


def test_a_missing_tokenizer_is_named(fresh_workspace: Path):
    (fresh_workspace / "demo" / "tokenizer.model").unlink()
    assert_refused(fresh_workspace, "demo/tokenizer.model not found", "checkpoint.tokenizer")


def test_a_tokenizer_that_is_none_is_refused(fresh_workspace: Path):
    (fresh_workspace / "demo" / "tokenizer.model").write_bytes(b"not a tokenizer")
    assert_refused(fresh_workspace, "demo/tokenizer.model", "no readable SentencePiece model")


def test_a_tokenizer_with_more_pieces_than_rows_is_refused(
    fresh_workspace: Path, directory: Path, weights: Path
):
    geometry = json.loads((directory / "config.json").read_text())["geometry"]
    change_json(directory / "config.json", geometry=geometry | {"vocabulary": 900})
    change_weights(weights, lambda t: t.update({LM_HEAD: t[LM_HEAD][:900].contiguous()}))
    assert_refused(fresh_workspace, "demo/tokenizer.model: found 1024 pieces", "the 900 rows")


DISAGREEMENTS: dict[str, tuple[object, tuple[str, ...]]] = {
    "horizon": (50, ("horizon: the checkpoint says 10, params.yaml says 50",)),
    "state_dims": (5, ("statistics of the state", "found q01 with 4 numbers", "at least 5")),
    "action_dims": (33, ("action_dims: 33 found, at most the 32",)),
}


@pytest.mark.parametrize("field", DISAGREEMENTS)
def test_params_that_contradict_the_checkpoint_are_refused(fresh_workspace: Path, field: str):
    value, parts = DISAGREEMENTS[field]
    change_params(fresh_workspace, **{f"checkpoint__interface__{field}": value})
    assert_refused(fresh_workspace, *parts)


@pytest.mark.parametrize("field", ["cameras", "prompt_format", "max_prompt_tokens", "normalization"])
def test_what_nobody_states_is_asked_for(fresh_workspace: Path, field: str):
    change_params(fresh_workspace, **{f"checkpoint__interface__{field}": None})
    assert_refused(fresh_workspace, field, "checkpoint.interface")


@pytest.mark.parametrize("path", ["demo/nothing", "demo/tokenizer.model"])
def test_a_checkpoint_path_that_is_no_directory_is_refused(fresh_workspace: Path, path: str):
    change_params(fresh_workspace, checkpoint__path=path)
    assert_refused(fresh_workspace, f"{path} is not a directory", "checkpoint.path")


def test_every_misshapen_tensor_is_named(fresh_workspace: Path, directory: Path):
    names = [f"action_{side}_proj.weight" for side in ("in", "out")]
    change_weights(
        directory / "model.safetensors", lambda t: t.update({n: t[n].t().contiguous() for n in names})
    )
    assert_refused(fresh_workspace, *(f"{name}: shape" for name in names), "(it is transposed)")
