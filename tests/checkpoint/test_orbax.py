"""The JAX checkpoint reader, on a tiny checkpoint that Orbax wrote (see make_orbax_fixture.py).

The variants (older layout, zarr3, bf16, broken trees) are derived from it here, because they must
be writable without Orbax: the older layout holds the same zarr keys as files, below the same tree.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from export.checkpoint.orbax import AXES, open_orbax
from pi05_runtime.errors import CheckpointError

ts = pytest.importorskip("tensorstore", reason="JAX checkpoints need `pip install tensorstore`")

DATA = Path(__file__).parents[1] / "data"
FIXTURE = DATA / "orbax_tiny"
OPENPI = {
    "w.paligemma_with_expert.paligemma.model.vision_tower.vision_model.embeddings.": "vision.",
    "w.paligemma_with_expert.paligemma.model.vision_tower.vision_model.encoder.": "vision.",
    "w.paligemma_with_expert.paligemma.model.vision_tower.vision_model.": "vision.",
    "w.paligemma_with_expert.paligemma.model.multi_modal_projector.linear.": "projector.",
    "w.paligemma_with_expert.paligemma.model.language_model.": "prefix.",
    "w.paligemma_with_expert.paligemma.lm_head.": "embedding.",
    "w.paligemma_with_expert.gemma_expert.model.": "expert.",
    "w.": "",
}
Tree = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    """The golden's weights under canonical names."""
    weights = {}
    for name, tensor in load_file(DATA / "golden_tiny.safetensors").items():
        if name.startswith("w."):
            old = next(prefix for prefix in OPENPI if name.startswith(prefix))
            weights[OPENPI[old] + name.removeprefix(old)] = tensor
    return weights


@pytest.fixture(scope="module")
def leaves() -> Tree:
    """Every leaf of the fixture by its path below `params`, read without the code under test."""
    base = {"driver": "file", "path": f"{FIXTURE / 'params'}/"}
    kvstore = {"driver": "ocdbt", "base": base}
    names = [key.decode() for key in ts.KvStore.open(kvstore).result().list().result()]
    tree = {}
    for name in [n.removesuffix("/.zarray") for n in names if n.endswith("/.zarray")]:
        array = ts.open({"driver": "zarr", "kvstore": kvstore | {"path": f"{name}/"}}, open=True).result()
        tree[name.removeprefix("params.").removesuffix(".value").replace(".", "/")] = array.read().result()
    return tree


def write(directory: Path, tree: Tree, zarr3: bool = False, suffix: str = "") -> Path:
    """A checkpoint of `tree` in Orbax's older layout, one zarr directory a leaf."""
    metadata: dict = {"tree_metadata": {}, "use_zarr3": zarr3, "store_array_data_equal_to_fill_value": True}
    for leaf, array in tree.items():
        keys = ["params", *(leaf + suffix).split("/")]
        spec = {
            "driver": "zarr3" if zarr3 else "zarr",
            "kvstore": {"driver": "file", "path": f"{directory / '.'.join(keys)}/"},
            "store_data_equal_to_fill_value": True,
        }
        store = ts.open(spec, create=True, dtype=array.dtype, shape=array.shape).result()
        store.write(array).result()
        metadata["tree_metadata"][str(tuple(keys))] = {
            "key_metadata": [{"key": k, "key_type": 2} for k in keys]
        }
    (directory / "_METADATA").write_text(json.dumps(metadata))
    return directory


def assert_equal(found: dict[str, Callable[[], torch.Tensor]], expected: dict[str, torch.Tensor]) -> None:
    """Same names, shapes, dtypes and bits; the tensors own their memory in torch's order."""
    assert found.keys() == expected.keys()
    for name, read in found.items():
        tensor = read()
        assert tensor.dtype == expected[name].dtype, name
        assert tensor.is_contiguous(), name
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("directory", [FIXTURE, FIXTURE / "params"], ids=["checkpoint", "params"])
def test_every_tensor_of_an_orbax_checkpoint(directory: Path, expected: dict[str, torch.Tensor]) -> None:
    assert_equal(open_orbax(directory), expected)


def test_any_order_gives_the_same_tensors(expected: dict[str, torch.Tensor]) -> None:
    found = open_orbax(FIXTURE)
    assert_equal({name: found[name] for name in sorted(found, reverse=True)}, expected)


def test_a_walk_opens_each_leaf_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An opened leaf keeps what it decoded, so this is also how often a leaf is decoded."""
    found = open_orbax(FIXTURE)
    opened, open_array = [], ts.open
    monkeypatch.setattr(ts, "open", lambda spec, **kw: opened.append(str(spec)) or open_array(spec, **kw))
    for read in found.values():
        read()
    assert len(opened) == len(set(opened)) == 51


def test_older_layout(tmp_path: Path, expected: dict[str, torch.Tensor]) -> None:
    """The fixture's own keys and bytes as files, which is what Orbax writes without OCDBT."""
    root = FIXTURE / "params"
    base = {"driver": "file", "path": f"{root}/"}
    store = ts.KvStore.open({"driver": "ocdbt", "base": base}).result()
    for key in store.list().result():
        path = tmp_path / key.decode()
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(store.read(key).result().value)
    shutil.copy(root / "_METADATA", tmp_path)
    assert_equal(open_orbax(tmp_path), expected)


@pytest.mark.parametrize("zarr3", [False, True], ids=["zarr", "zarr3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes_and_formats(
    tmp_path: Path, leaves: Tree, expected: dict[str, torch.Tensor], dtype: str, zarr3: bool
) -> None:
    """Without the "/value" suffix, as released checkpoints are."""
    numpy_dtype = ts.dtype(dtype).numpy_dtype
    directory = write(tmp_path, {leaf: array.astype(numpy_dtype) for leaf, array in leaves.items()}, zarr3)
    rounded = {name: tensor.to(getattr(torch, dtype)) for name, tensor in expected.items()}
    assert_equal(open_orbax(directory), rounded)


def test_every_bad_leaf_is_named_at_once(tmp_path: Path, leaves: Tree) -> None:
    kv, norm = "PaliGemma/llm/layers/attn/kv_einsum/w", "PaliGemma/llm/final_norm/scale"
    missing = ("time_mlp_in/bias", "PaliGemma/img/pos_embedding")
    lora = "PaliGemma/llm/layers/attn/q_einsum/lora_a"
    tree = {leaf: array for leaf, array in leaves.items() if leaf not in missing}
    tree |= {lora: np.zeros((3, 8, 64, 4), np.float32)}
    tree |= {kv: np.repeat(leaves[kv], 2, axis=2), norm: leaves[norm].astype(np.int32)}
    tree |= {"action_in_proj/kernel": leaves["action_in_proj/kernel"][None]}
    with pytest.raises(CheckpointError) as error:
        open_orbax(write(tmp_path, tree, suffix="/value"))
    lines = str(error.value).splitlines()
    assert "expected 51 leaves, found 50" in lines[0]
    assert "merge" in lines[-1]
    assert {line.strip() for line in lines[1:-1]} == {
        "missing: time_mlp_in/bias, expected [out]",
        "missing: PaliGemma/img/pos_embedding, expected [1 tokens width]",
        f"unexpected: {lora}, expected no such leaf, found [3, 8, 64, 4] of float32",
        f"wrong: {kv}, expected [layers 2 1 width head_dim] of float32/bfloat16/float16, "
        "found [3, 2, 2, 64, 16] of float32",
        f"wrong: {norm}, expected [width] of float32/bfloat16/float16, found [64] of int32",
        "wrong: action_in_proj/kernel, expected [in out] of float32/bfloat16/float16, "
        "found [1, 32, 40] of float32",
    }


def pi0(leaves: Tree) -> Tree:
    """The tree of a pi0: plain norms in the expert, a state projection, the time beside the action."""
    tree = {
        leaf: array for leaf, array in leaves.items() if "time_mlp" not in leaf and "_1/Dense_0" not in leaf
    }
    for name in ("layers/pre_attention_norm_1", "layers/pre_ffw_norm_1", "final_norm_1"):
        tree[f"PaliGemma/llm/{name}/scale"] = np.zeros((3, 40), np.float32)
    for name in ("state_proj", "action_time_mlp_in", "action_time_mlp_out"):
        tree[f"{name}/kernel"] = np.zeros((40, 40), np.float32)
        tree[f"{name}/bias"] = np.zeros((40,), np.float32)
    return tree


def test_a_pi0_is_refused_by_name(tmp_path: Path, leaves: Tree) -> None:
    with pytest.raises(CheckpointError, match=r"this is a pi0 checkpoint.*found .*state_proj/kernel"):
        open_orbax(write(tmp_path, pi0(leaves)))


def test_a_pi05_with_one_pi0_leaf_is_not_called_a_pi0(tmp_path: Path, leaves: Tree) -> None:
    tree = leaves | {"state_proj/bias": np.zeros((40,), np.float32)}
    with pytest.raises(CheckpointError, match="unexpected: state_proj/bias"):
        open_orbax(write(tmp_path, tree))


def test_an_array_that_was_not_copied(tmp_path: Path, leaves: Tree) -> None:
    directory = write(tmp_path, leaves)
    shutil.rmtree(directory / "params.time_mlp_out.kernel")
    with pytest.raises(CheckpointError, match=r"unreadable: time_mlp_out/kernel, expected \[in out\]"):
        open_orbax(directory)


def test_a_chunk_that_was_not_copied_does_not_read_as_zeros(tmp_path: Path, leaves: Tree) -> None:
    directory = write(tmp_path, leaves)
    (directory / "params.time_mlp_out.kernel" / "0.0").unlink()
    found = open_orbax(directory)
    with pytest.raises(CheckpointError, match=r"time_mlp_out/kernel .*Copy the checkpoint again"):
        found["time_mlp_out.weight"]()


def test_a_chunk_of_zeros_that_was_left_out(tmp_path: Path, leaves: Tree) -> None:
    """Older writers leave such chunks out and say so; trained biases can be all zero."""
    directory = write(tmp_path, leaves)
    (directory / "params.time_mlp_out.bias" / "0").unlink()
    metadata = json.loads((directory / "_METADATA").read_text())
    del metadata["store_array_data_equal_to_fill_value"]
    (directory / "_METADATA").write_text(json.dumps(metadata))
    assert torch.equal(open_orbax(directory)["time_mlp_out.bias"](), torch.zeros(40))


@pytest.mark.parametrize("text", [None, "{", "[]", '{"tree_metadata": {"x": {}}}'])
def test_not_an_orbax_checkpoint(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "_METADATA").write_text(text)
    with pytest.raises(CheckpointError, match="_METADATA"):
        open_orbax(tmp_path)


def test_tensorstore_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(CheckpointError, match="pip install tensorstore"):
        open_orbax(FIXTURE)


def test_the_fixture_holds_every_leaf(leaves: Tree) -> None:
    assert leaves.keys() == AXES.keys()
