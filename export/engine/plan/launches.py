"""Launches between products: norms with the sums that come before them, and attention."""

import math

import torch

from export.engine.plan.builder import Builder, Operand, Value
from export.engine.plan.products import Heads, Parts, activations, ceil, inverse, optional
from export.engine.plan.source import Linear, Source
from export.engine.plan.tiles import KEYS, attention_tiles, chunk_tiles, power_of_two, tiles
from export.kernels import attention as attention_kernels
from export.kernels import decode_attention as decode_kernels
from export.kernels import norm as norm_kernels

BF16 = torch.bfloat16
LOG2_E = math.log2(math.e)


def norm(
    b: Builder,
    source: Source,
    name: str,
    x: Value,
    rows: int,
    width: int,
    following: Linear,
    *,
    parts: Parts | None = None,
    modulation: Value | None = None,
) -> tuple[Value, Value]:
    """(what `following` reads, the residual after `parts` were added). LayerNorm where the component has
    weights of that name, RMS otherwise, adaRMS with a modulation."""
    out = activations(b, following, rows, width)
    summed = b.result(BF16, rows, width) if parts else None
    b.launch(
        name,
        norm_kernels.norm,
        {
            "x": x,
            "parts": parts.sums if parts else None,
            "shift": parts.shift if parts else None,
            "summed": summed,
            "weight": optional(b, source, f"{name}.weight", width),
            "bias": optional(b, source, f"{name}.bias", width),
            "modulation": modulation,
            "out": out,
            "ROWS": rows,
            "inverse_scale": inverse(following),
        },
        {"N": width, "WIDTH": power_of_two(width), "SPLITS": parts.splits if parts else 0},
        tuple(tiles(warps, 1) for warps in (4, 8, 2, 16)),
        lambda _: (rows,),
    )
    return out, summed or x


def attention(
    b: Builder,
    name: str,
    q: Value,
    k: Value,
    v: Value,
    out: Value,
    following: Linear,
    *,
    rows: int,
    keys: int,
    dim: int,
    strides: dict[str, int],
    heads: int = 1,
    batches: int = 1,
    length: Value | None = None,
) -> None:
    """strides: of rows, heads and batches, in elements, as the kernel names them."""
    main = power_of_two(dim + 1) // 2
    rest = 0 if main == dim else max(16, power_of_two(dim - main))
    operands = {
        "q": q,
        "k": k,
        "v": v,
        "out": out,
        "length": length,
        "scale": dim**-0.5 * LOG2_E,
        "inverse_scale": inverse(following),
        "ROWS": rows,
        "KEYS": keys,
        "HEADS": heads,
    }
    b.launch(
        name,
        attention_kernels.attention,
        operands,
        {**strides, "D": dim, "MAIN": main, "REST": rest},
        tuple(attention_tiles(rows)),
        lambda t: (ceil(rows, t["BM"]), heads * batches),
    )


def decode_attention(
    b: Builder,
    name: str,
    heads: Heads,
    rows: int,
    prefix: int,
    keys: Value,
    values: Value,
    length: Value,
    following: Linear,
    soon: Value,
    size: int,
) -> Value:
    """The chunk's queries over the cache of `prefix` rows and over its own keys, and what all tiles of keys
    have found, merged: what `following` reads. soon: weights of a launch to come, of `size` bytes."""
    n, height, cached = heads.queries, max(16, power_of_two(rows)), ceil(prefix, KEYS)
    splits = cached + ceil(rows, KEYS)
    found: dict[str, Operand] = {
        "parts": b.result(BF16, n, splits, rows, heads.dim),
        "peaks": b.result(torch.float32, n, splits, rows),
        "totals": b.result(torch.float32, n, splits, rows),
        "M": rows,
    }
    constants = {"HEADS": n, "D": heads.dim, "SPLITS": splits}
    b.launch(
        f"{name}.attention",
        decode_kernels.decode_attention,
        {
            "q": heads.queried,
            "keys": keys,
            "values": values,
            "own_keys": heads.keys,
            "own_values": heads.values,
            "length": length,
            "scale": heads.dim**-0.5 * LOG2_E,
            "soon": soon,
        }
        | found,
        constants | {"CACHED": cached},
        tuple(chunk_tiles(height, size)),
        lambda _: (n, splits),
    )
    out = activations(b, following, rows, n * heads.dim)
    b.launch(
        f"{name}.merge",
        decode_kernels.merge,
        found | {"out": out, "inverse_scale": inverse(following)},
        {**constants, "WIDTH": power_of_two(splits)},
        (tiles(4, 1), tiles(2, 1), tiles(8, 1)),
        lambda _: (rows, n),
    )
    return out
