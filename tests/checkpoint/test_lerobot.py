"""LeRobot's policy directory through the real stage, written here as LeRobot 0.6 writes it."""

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from export.checkpoint.canonical import Description, read_description, read_weights
from export.model.parameters import FILES
from tests.checkpoint.refusal import STAGE, assert_refused, change_json, change_weights
from tests.golden import GEOMETRY, golden, weights
from tests.pipeline import change_params, make_workspace, run_stage

STORED = {name.removeprefix("w."): tensor for name, tensor in golden().items() if name.startswith("w.")}
STATE = {"q01": [-1.0, -2.0], "q99": [1.0, 2.0], "mean": [0.25, 0.5], "std": [0.5, 0.75], "count": [9.0]}
ACTION = {"q01": [-3.0] * 3, "q99": [3.0] * 3, "mean": [0.0] * 3, "std": [1.5] * 3, "count": [9.0]}
PREPROCESSOR = "policy_preprocessor_step_2_normalizer_processor.safetensors"
POSTPROCESSOR = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"


def visual() -> dict[str, object]:
    return {"type": "VISUAL", "shape": [3, 56, 56]}


INPUTS = {
    "observation.images.wrist": visual(),
    "observation.state": {"type": "STATE", "shape": [2]},
    "observation.images.base": visual(),
}
CONFIG = {
    "type": "pi05",
    "n_obs_steps": 1,
    "input_features": INPUTS,
    "output_features": {"action": {"type": "ACTION", "shape": [3]}},
    "device": "cpu",
    "paligemma_variant": "gemma_2b",
    "action_expert_variant": "gemma_300m",
    "dtype": "float32",
    "chunk_size": 7,
    "n_action_steps": 7,
    "max_state_dim": 32,
    "max_action_dim": 32,
    "num_inference_steps": 10,
    "use_relative_actions": False,
    "image_resolution": [56, 56],
    "empty_cameras": 0,
    "tokenizer_max_length": 48,
    "normalization_mapping": {"VISUAL": "IDENTITY", "STATE": "QUANTILES", "ACTION": "QUANTILES"},
    "geometry": msgspec.to_builtins(GEOMETRY),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with fewer pieces than the golden's 512 rows."""
    path = tmp_path_factory.mktemp("tokenizer") / "small.model"
    sentences: Iterator[str] = (f"Task: open the drawer, State: {n} {n};" for n in range(-1, 256))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences,
        model_prefix=str(path.with_suffix("")),
        model_type="bpe",
        vocab_size=300,
        byte_fallback=True,
        minloglevel=2,
    )
    return path


@pytest.fixture
def directory(tmp_path: Path, tokenizer: Path) -> Path:
    """A policy of the golden's weights, in a workspace whose params name it."""
    workspace = make_workspace(tmp_path)
    directory = workspace / "policy"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG))
    save_file(STORED, directory / "model.safetensors")
    write_statistics(directory / PREPROCESSOR)
    write_statistics(directory / POSTPROCESSOR)
    interface = {"prompt_format": "state"}
    change_params(
        workspace,
        checkpoint={
            "path": "policy",
            "layout": "lerobot",
            "tokenizer": str(tokenizer),
            "interface": interface,
        },
    )
    return directory


def write_statistics(file: Path, **changes: list[float]) -> None:
    """Both processors store the statistics of every feature, flat, under `<feature>.<name>`."""
    named = {f"observation.state.{k}": v for k, v in STATE.items()}
    named |= {f"action.{k}": v for k, v in ACTION.items()} | changes
    save_file({name: torch.tensor(values) for name, values in named.items()}, file)


def opened(directory: Path) -> Description:
    run_stage(directory.parent, STAGE)
    return read_description(directory.parent / "artifacts" / "checkpoint")


def assert_golden(directory: Path, expected: dict[str, Tensor]) -> None:
    run_stage(directory.parent, STAGE)
    found = read_weights(*FILES, folder=directory.parent / "artifacts" / "checkpoint")
    needed = expected.keys() - {"prefix.norm.weight"}
    assert found.keys() == needed
    assert all(torch.equal(found[name], expected[name]) for name in needed)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_canonical_tensors_equal_the_goldens(directory: Path, prefix: str):
    save_file({prefix + name: tensor for name, tensor in STORED.items()}, directory / "model.safetensors")
    assert_golden(directory, weights())


def test_untied_models_store_both_tables_and_use_embed_tokens(directory: Path):
    table = torch.randn(512, 64)
    name = "paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
    change_weights(directory / "model.safetensors", lambda t: t.update({name: table}))
    assert_golden(directory, weights() | {"embedding.weight": table})


def test_a_prefix_on_some_names_only_is_refused(directory: Path):
    name = "time_mlp_in.bias"
    change_weights(directory / "model.safetensors", lambda t: t.update({f"model.{name}": t.pop(name)}))
    assert_refused(directory.parent, "missing: time_mlp_in.bias", "unexpected: model.time_mlp_in.bias")


def test_the_interface_is_what_the_config_states(directory: Path):
    interface = opened(directory).interface
    assert interface.cameras == ("wrist", "base")
    assert (interface.state_dims, interface.action_dims) == (2, 3)
    assert (interface.horizon, interface.max_prompt_tokens) == (7, 48)
    assert interface.image_convention == interface.normalization.convention == "lerobot"


def test_statistics_are_read_in_full(directory: Path):
    normalization = opened(directory).interface.normalization
    for found, written in ((normalization.state, STATE), (normalization.actions, ACTION)):
        for name in ("mean", "std", "q01", "q99"):
            assert list(getattr(found, name)) == written[name]


@pytest.mark.parametrize(
    ("state", "action", "modes"),
    [
        ("QUANTILES", "QUANTILES", ("quantile", "quantile")),
        ("MEAN_STD", "MEAN_STD", ("zscore", "zscore")),
        ("MEAN_STD", "QUANTILES", ("zscore", "quantile")),
    ],
)
def test_normalization_modes_come_from_the_mapping(
    directory: Path, state: str, action: str, modes: tuple[str, str]
):
    change_json(directory / "config.json", normalization_mapping={"STATE": state, "ACTION": action})
    normalization = opened(directory).interface.normalization
    assert (normalization.state_mode, normalization.action_mode) == modes


@pytest.mark.parametrize("action", ["MEAN_STD", "QUANTILES"])
def test_params_that_contradict_the_mapping_are_refused(directory: Path, action: str):
    change_json(directory / "config.json", normalization_mapping={"STATE": "MEAN_STD", "ACTION": action})
    change_params(directory.parent, checkpoint__interface__normalization="quantile")
    assert_refused(directory.parent, "normalization: the checkpoint says", "params.yaml says quantile")


def test_params_that_agree_with_the_mapping_are_accepted(directory: Path):
    change_params(directory.parent, checkpoint__interface__normalization="quantile")
    assert opened(directory).interface.normalization.state_mode == "quantile"


@pytest.mark.parametrize("index", [0, 3, 11])
def test_the_index_of_a_processor_step_varies(directory: Path, index: int):
    (directory / PREPROCESSOR).rename(directory / PREPROCESSOR.replace("step_2", f"step_{index}"))
    (directory / POSTPROCESSOR).rename(directory / POSTPROCESSOR.replace("step_0", f"step_{index}"))
    assert opened(directory).interface.normalization.actions.q99 == (3.0, 3.0, 3.0)


@pytest.mark.parametrize("declared", [0, 2])
def test_empty_cameras_are_no_live_cameras(directory: Path, declared: int):
    """A later training may lower the count and keep the features, so the name decides."""
    empty = {f"observation.images.empty_camera_{i}": visual() for i in range(2)}
    change_json(directory / "config.json", empty_cameras=declared, input_features=empty | INPUTS)
    assert opened(directory).interface.cameras == ("wrist", "base")


def test_a_camera_that_is_only_called_empty_is_live(directory: Path):
    inputs = INPUTS | {"observation.images.empty_bin": visual()}
    change_json(directory / "config.json", input_features=inputs)
    assert opened(directory).interface.cameras == ("wrist", "base", "empty_bin")


STATE_ONLY = {"observation.state": INPUTS["observation.state"]}
BAD_CONFIG: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
    "pi0": ({"type": "pi0"}, ("this is a pi0 checkpoint", "expected LeRobot type `pi05`")),
    "no type": ({"type": None}, ("nameless checkpoint", "expected LeRobot type `pi05`")),
    "relative actions": ({"use_relative_actions": True}, ("use_relative_actions is true",)),
    "unknown mode": (
        {"normalization_mapping": {"STATE": "QUANTILES", "ACTION": "MIN_MAX"}},
        ("normalization_mapping.ACTION is MIN_MAX", "expected ['MEAN_STD', 'QUANTILES']"),
    ),
    "no mode": (
        {"normalization_mapping": {"ACTION": "QUANTILES"}},
        ("normalization_mapping.STATE is None",),
    ),
    "no cameras": ({"input_features": STATE_ONLY}, ("does not say cameras",)),
    "no state": (
        {"input_features": {"observation.images.base": visual()}},
        ("expected one STATE input", "observation.images.base"),
    ),
    "no action": ({"output_features": {}}, ("an `action` output",)),
    "no shape": (
        {"output_features": {"action": {"type": "ACTION", "shape": []}}},
        ("config.json: ", "output_features", "shape"),
    ),
    "no chunk size": ({"chunk_size": None}, ("config.json: ", "`chunk_size`")),
    "action width": ({"max_action_dim": 24}, ("max_action_dim is 24, 32 expected",)),
    "padded state": (
        {"input_features": INPUTS | {"observation.state": {"type": "STATE", "shape": [32]}}},
        ("statistics of the state", "found q01 with 2 numbers", "exactly 32"),
    ),
}


@pytest.mark.parametrize("kind", BAD_CONFIG)
def test_a_bad_config_is_refused(directory: Path, kind: str):
    changes, parts = BAD_CONFIG[kind]
    change_json(directory / "config.json", **changes)
    assert_refused(directory.parent, *parts)


def test_a_missing_config_is_named(directory: Path):
    (directory / "config.json").unlink()
    assert_refused(directory.parent, "policy/config.json not found")


def test_a_horizon_in_params_that_contradicts_chunk_size_is_refused(directory: Path):
    change_params(directory.parent, checkpoint__interface__horizon=50)
    assert_refused(directory.parent, "horizon: the checkpoint says 7, params.yaml says 50")


@pytest.mark.parametrize("file", [PREPROCESSOR, POSTPROCESSOR])
def test_a_missing_statistics_file_is_named(directory: Path, file: str):
    (directory / file).unlink()
    pattern = file.replace("step_2", "step_*").replace("step_0", "step_*")
    assert_refused(directory.parent, f"expected one {pattern}, found []")


@pytest.mark.parametrize("file", [PREPROCESSOR, POSTPROCESSOR])
def test_of_two_statistics_files_neither_is_guessed(directory: Path, file: str):
    other = file.replace("step_2", "step_5").replace("step_0", "step_5")
    write_statistics(directory / other)
    assert_refused(directory.parent, file, other)


def test_truncated_statistics_are_refused(directory: Path):
    file = directory / POSTPROCESSOR
    file.write_bytes(file.read_bytes()[:-1])
    assert_refused(directory.parent, POSTPROCESSOR, "cannot be read", "download it again")


def test_statistics_of_other_features_only_are_refused(directory: Path):
    save_file({"observation.state.mean": torch.zeros(2)}, directory / POSTPROCESSOR)
    assert_refused(directory.parent, "no statistics of action", "observation.state.mean")


def test_statistics_with_nan_are_refused(directory: Path):
    """JSON has no NaN: written to policy.json it would come back as null, stages later."""
    write_statistics(directory / PREPROCESSOR, **{"observation.state.q99": [1.0, float("nan")]})
    assert_refused(directory.parent, PREPROCESSOR, "observation.state", "q99")


def test_statistics_without_what_the_mode_needs_are_refused(directory: Path):
    save_file({"action.mean": torch.zeros(3), "action.std": torch.ones(3)}, directory / POSTPROCESSOR)
    assert_refused(directory.parent, "statistics of the actions: mode 'quantile' found q01 with 0")


def test_bfloat16_statistics_are_read(directory: Path):
    stored = {name: tensor.bfloat16() for name, tensor in load_file(directory / PREPROCESSOR).items()}
    save_file(stored, directory / PREPROCESSOR)
    assert opened(directory).interface.normalization.state.mean == (0.25, 0.5)


def test_a_memory_model_is_refused_by_its_extra_tensor(directory: Path):
    extra = {"model.proprio_history_proj.weight": torch.zeros(64, 32)}
    save_file({f"model.{n}": t for n, t in STORED.items()} | extra, directory / "model.safetensors")
    assert_refused(directory.parent, "unexpected: proprio_history_proj.weight")


def test_a_robot_may_lack_listed_cameras(directory: Path):
    interface = {"prompt_format": "state", "cameras": ["base"]}
    change_params(directory.parent, checkpoint__interface=interface)
    assert opened(directory).interface.cameras == ("base",)


def test_listed_cameras_keep_their_order(directory: Path):
    interface = {"prompt_format": "state", "cameras": ["base", "wrist"]}
    change_params(directory.parent, checkpoint__interface=interface)
    assert_refused(directory.parent, "cameras: the checkpoint says ('wrist', 'base')")
