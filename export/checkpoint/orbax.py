"""openpi's JAX checkpoints (Orbax), read with neither JAX nor Orbax.

Below its JSON tree an Orbax checkpoint is plain zarr arrays: in one OCDBT key-value store or, in
the older layout, one directory an array. TensorStore, the library Orbax itself writes through,
reads both by itself, so this optional format costs one package instead of all of JAX.

A leaf stacks all layers along axis 0 and usually lies in the file as a single compressed chunk
(4.8 GB for the fp32 MLP of the real prefix): to read one layer is to decode all of them. So the
decoded chunks of the leaf read last are kept, of that one only, and the dictionary is ordered leaf
by leaf. Walk it in its own order and every leaf is decoded once; any other order gives the same
tensors, but decodes a leaf again at each return to it.
"""

import json
import re
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from pi05_runtime.errors import CheckpointError

if TYPE_CHECKING:
    from tensorstore import TensorStore

LazyTensor = Callable[[], torch.Tensor]

DTYPES = ("float32", "bfloat16", "float16")
PI0_ONLY = ("state_proj", "action_time_mlp_in", "action_time_mlp_out")
VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "same": lambda x: x,
    "first": lambda x: x[0],
    "flat": lambda x: x.flatten(),
    "conv": lambda x: x.permute(3, 2, 0, 1),  # [h, w, in, out] -> [out, in, h, w]
    "kernel": lambda x: x.T,  # [in, out] -> [out, in]
    "split": lambda x: x.flatten(1).T,  # [in, heads, head_dim] -> [heads * head_dim, in]
    "join": lambda x: x.flatten(0, 1).T,  # [heads, head_dim, out] -> [out, heads * head_dim]
    "query": lambda x: x.transpose(1, 2).flatten(0, 1),  # [heads, in, head_dim] -> [heads * head_dim, in]
    "key": lambda x: x[0, 0].T,  # [k|v, one head, in, head_dim] -> [head_dim, in]
    "value": lambda x: x[1, 0].T,
    "gate": lambda x: x[0].T,  # [gate|up, in, out] -> [out, in]
    "up": lambda x: x[1].T,
}
# Below a line `leaves > tensors`: leaf | its axes | tensor, less `.weight` | view that cuts it out.
# A leaf `.../kernel+bias` has a bias beside it, without the axes in brackets. A number is a fixed
# extent. `{i}` is the layer, an index into axis 0 that is taken before the view.
TABLE = """
PaliGemma/img/ > vision.
embedding/kernel+bias               | (patch patch 3) width | patch_embedding    | conv
pos_embedding                       | 1 tokens width        | position_embedding | first
Transformer/encoder_norm/scale+bias | width                 | post_layernorm     | same
PaliGemma/img/Transformer/encoderblock/ > vision.layers.{i}.
LayerNorm_0/scale+bias         | layers width       | layer_norm1 | same
LayerNorm_1/scale+bias         | layers width       | layer_norm2 | same
MlpBlock_0/Dense_0/kernel+bias | layers (width) mlp | mlp.fc1     | kernel
MlpBlock_0/Dense_1/kernel+bias | layers (mlp) width | mlp.fc2     | kernel
PaliGemma/img/Transformer/encoderblock/MultiHeadDotProductAttention_0/ > vision.layers.{i}.self_attn.
query/kernel+bias | layers (width) heads head_dim | q_proj   | split
key/kernel+bias   | layers (width) heads head_dim | k_proj   | split
value/kernel+bias | layers (width) heads head_dim | v_proj   | split
out/kernel+bias   | layers (heads head_dim) width | out_proj | join
PaliGemma/llm/layers/ > prefix.layers.{i}.
attn/q_einsum/w          | layers heads width head_dim | self_attn.q_proj         | query
attn/kv_einsum/w         | layers 2 1 width head_dim   | self_attn.k_proj         | key
attn/kv_einsum/w         | layers 2 1 width head_dim   | self_attn.v_proj         | value
attn/attn_vec_einsum/w   | layers heads head_dim width | self_attn.o_proj         | join
mlp/gating_einsum        | layers 2 width mlp          | mlp.gate_proj            | gate
mlp/gating_einsum        | layers 2 width mlp          | mlp.up_proj              | up
mlp/linear               | layers mlp width            | mlp.down_proj            | kernel
pre_attention_norm/scale | layers width                | input_layernorm          | same
pre_ffw_norm/scale       | layers width                | post_attention_layernorm | same
PaliGemma/llm/layers/ > expert.layers.{i}.
attn/q_einsum_1/w        | layers heads width head_dim | self_attn.q_proj | query
attn/kv_einsum_1/w       | layers 2 1 width head_dim   | self_attn.k_proj | key
attn/kv_einsum_1/w       | layers 2 1 width head_dim   | self_attn.v_proj | value
attn/attn_vec_einsum_1/w | layers heads head_dim width | self_attn.o_proj | join
mlp_1/gating_einsum      | layers 2 width mlp          | mlp.gate_proj    | gate
mlp_1/gating_einsum      | layers 2 width mlp          | mlp.up_proj      | up
mlp_1/linear             | layers mlp width            | mlp.down_proj    | kernel
PaliGemma/llm/layers/ > expert.layers.{i}.
pre_attention_norm_1/Dense_0/kernel+bias | layers (width) 3*width | input_layernorm.dense          | kernel
pre_ffw_norm_1/Dense_0/kernel+bias       | layers (width) 3*width | post_attention_layernorm.dense | kernel
PaliGemma/ >
img/head/kernel+bias                 | (width) out      | projector         | kernel
llm/embedder/input_embedding         | vocabulary width | embedding         | same
llm/final_norm/scale                 | width            | prefix.norm       | same
llm/final_norm_1/Dense_0/kernel+bias | (width) 3*width  | expert.norm.dense | kernel
>
action_in_proj/kernel+bias  | (in) out | action_in_proj  | kernel
action_out_proj/kernel+bias | (in) out | action_out_proj | kernel
time_mlp_in/kernel+bias     | (in) out | time_mlp_in     | kernel
time_mlp_out/kernel+bias    | (in) out | time_mlp_out    | kernel
"""


class Row(NamedTuple):
    """One torch tensor of TABLE; leaf (a path below `params`) and tensor are named in full."""

    leaf: str
    axes: str
    target: str
    view: str


def _rows() -> Iterator[Row]:
    leaves = targets = ""
    for line in TABLE.strip().splitlines():
        if ">" in line:
            leaves, targets = (part.strip() for part in line.split(">"))
            continue
        leaf, axes, target, view = (cell.strip() for cell in line.split("|"))
        kernel, _, bias = leaf.partition("+")
        yield Row(leaves + kernel, re.sub("[()]", "", axes), f"{targets}{target}.weight", view)
        if bias:
            of_bias = re.sub(r"\(.*\) ", "", axes)
            yield Row(f"{leaves}{kernel.rpartition('/')[0]}/bias", of_bias, f"{targets}{target}.bias", "flat")


ROWS = tuple(_rows())
AXES = {row.leaf: row.axes for row in ROWS}


def open_orbax(directory: Path) -> dict[str, LazyTensor]:
    """Canonical tensor names of the checkpoint at `directory`, each with the function that reads it.

    `directory` is openpi's `<checkpoint>/params`, or `<checkpoint>`. The tensors have torch's
    layout (weights [out, in]) and the file's dtype. Only shapes are read before a function is called.

    Raises CheckpointError if TensorStore is missing, if this is no Orbax checkpoint, if it is a
    pi0, or if any leaf is missing, unexpected, unreadable or not of a pi0.5's shape; a tensor's
    function raises it if the file lacks that tensor's bytes.
    """
    root = directory / "params" if (directory / "params" / "_METADATA").is_file() else directory
    leaves, open_leaf = _tree(root.absolute())
    pi0 = [leaf for leaf in leaves if leaf.split("/")[0] in PI0_ONLY]
    if pi0 and not any("norm_1/Dense_0/" in leaf for leaf in leaves):
        raise CheckpointError(
            f"{root}: this is a pi0 checkpoint, not a pi0.5. Expected time_mlp_in, time_mlp_out and adaRMS "
            f"leaves (Dense_0 in the expert's norms), found {', '.join(pi0)}. Take a pi05_* checkpoint."
        )
    problems = [f"missing: {leaf}, expected [{AXES[leaf]}]" for leaf in AXES if leaf not in leaves]
    depths: dict[str, int] = {}
    for leaf in leaves:
        axes = AXES.get(leaf)
        expected = f"expected [{axes}] of {'/'.join(DTYPES)}" if axes else "expected no such leaf"
        try:
            array = open_leaf(leaf)
        except ValueError as error:
            problems.append(f"unreadable: {leaf}, {expected}, found {error}")
            continue
        if not _fits(array, axes):
            kind = "wrong" if axes else "unexpected"
            problems.append(f"{kind}: {leaf}, {expected}, found {list(array.shape)} of {array.dtype.name}")
        depths[leaf] = array.shape[0] if array.rank else 0
    if problems:
        raise CheckpointError(
            f"{root} is not openpi's pi0.5 (expected {len(AXES)} leaves, found {len(leaves)}):\n  "
            + "\n  ".join(problems)
            + "\nIf leaves are missing or unreadable, copy the checkpoint again. If there are lora leaves, "
            "merge them into their kernels and save it again. Otherwise this is another model."
        )
    open_last = lru_cache(maxsize=1)(open_leaf)
    return {
        row.target.replace("{i}", str(layer)): partial(_read, open_last, row, layer)
        for row in ROWS
        for layer in (range(depths[row.leaf]) if "{i}" in row.target else (None,))
    }


def _tree(root: Path) -> tuple[list[str], Callable[[str], "TensorStore"]]:
    """The leaves below `params` in the checkpoint at `root`, and what opens one of them.

    An opened leaf keeps the chunks it decodes until it is dropped. A chunk that is not in the file
    reads as zeros only where the writer left zeros out; otherwise it is an error, so that a partial
    copy cannot pass for a trained one.
    """
    try:
        import tensorstore
    except ImportError as error:
        raise CheckpointError(
            f"{root}: expected the package tensorstore, to read a JAX checkpoint with; found none. "
            "Run `pip install tensorstore`."
        ) from error
    try:
        metadata = json.loads((root / "_METADATA").read_text())
        tree = metadata["tree_metadata"].values()
        keys = [[str(part["key"]) for part in leaf["key_metadata"]] for leaf in tree]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{root}: expected an Orbax checkpoint with its tree in _METADATA, found {error!r}. "
            "Give the directory `params` of an openpi JAX checkpoint."
        ) from error
    paths = {"/".join(key).removeprefix("params/").removesuffix("/value"): ".".join(key) for key in keys}
    in_ocdbt = (root / "manifest.ocdbt").is_file()

    def open_leaf(leaf: str) -> "TensorStore":
        ocdbt = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{root}/"}, "path": f"{paths[leaf]}/"}
        spec = {
            "driver": "zarr3" if metadata.get("use_zarr3") else "zarr",
            "kvstore": ocdbt if in_ocdbt else {"driver": "file", "path": f"{root}/{paths[leaf]}/"},
            "fill_missing_data_reads": not metadata.get("store_array_data_equal_to_fill_value"),
        }
        cache = tensorstore.Context({"cache_pool": {"total_bytes_limit": 1 << 50}})
        return tensorstore.open(spec, open=True, read=True, context=cache).result()

    return list(paths), open_leaf


def _fits(array: "TensorStore", axes: str | None) -> bool:
    """Whether rank, fixed extents and dtype are those of `axes`; never for a leaf without any."""
    wanted = axes.split() if axes else None
    if wanted is None or array.rank != len(wanted) or array.dtype.name not in DTYPES:
        return False
    return all(not axis.isdigit() or int(axis) == n for axis, n in zip(wanted, array.shape, strict=True))


def _read(open_leaf: Callable[[str], "TensorStore"], row: Row, layer: int | None) -> torch.Tensor:
    """The tensor of `row` (at `layer`, if its leaf is a stack), contiguous, in the file's dtype."""
    try:
        array = open_leaf(row.leaf)
        values = (array if layer is None else array[layer]).read(order="C").result()
    except ValueError as error:
        raise CheckpointError(
            f"{row.leaf} (for {row.target}): expected [{row.axes}], found unreadable data: {error}. "
            "Copy the checkpoint again."
        ) from error
    is_bf16 = values.dtype.name == "bfloat16"
    x = torch.from_numpy(values.view(np.int16)).view(torch.bfloat16) if is_bf16 else torch.from_numpy(values)
    return VIEWS[row.view](x).contiguous()
