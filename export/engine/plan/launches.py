"""Launches between products: norms with the sums that come before them, and attention."""

import math
from collections.abc import Mapping

import torch

from export.engine.plan.builder import Builder, Operand, Tiling, Value, Way, WeightValue
from export.engine.plan.products import HOPPER, Heads, Parts, activations, ceil, inverse, optional
from export.engine.plan.source import Linear, Source
from export.engine.plan.tiles import (
    KEYS,
    attention_tiles,
    chunk_tiles,
    norm_tiles,
    pingpong_tiles,
    power_of_two,
    resident_tiles,
    tall_chunk_tiles,
    tiles,
)
from export.kernels import attention as attention_kernels
from export.kernels import decode_attention as decode_kernels
from export.kernels import norm as norm_kernels
from export.kernels import pingpong as pingpong_kernels
from export.kernels import resident_attention as resident_kernels
from export.kernels import tall_attention as tall_kernels

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
    gate: Value | None = None,
    modulation: Value | None = None,
    followed: bool = False,
    next_norm: str = "",
    asks: Mapping[str, Linear] | None = None,
) -> tuple[Value, Value]:
    """(what `following` reads, the residual after `parts`, times `gate`, were added). LayerNorm where the
    component has weights of that name, RMS otherwise, adaRMS with a modulation. followed: by that of another
    norm. next_norm: the LayerNorm that comes next. asks: two layers by name, for whose weights the L2 cache
    may be asked meanwhile: a chip's memory is idle while much is multiplied with little."""
    out = activations(b, following, rows, width)
    summed = b.result(BF16, rows, width) if parts else None
    asked: dict[str, Operand] = {}
    sizes: dict[str, int] = {"SOON_BYTES": 0, "LATER_BYTES": 0}
    for which, (layer, linear) in zip(("soon", "later"), asks.items() if asks else (), strict=False):
        asked[which] = WeightValue(linear.weight.dtype, 0, layer)
        sizes[f"{which.upper()}_BYTES"] = linear.weight.nbytes
    b.launch(
        name,
        norm_kernels.norm,
        {
            "x": x,
            "parts": parts.sums if parts else None,
            "shift": parts.shift if parts else None,
            "gate": gate,
            "summed": summed,
            "weight": optional(b, source, f"{name}.weight", width),
            "bias": optional(b, source, f"{name}.bias", width),
            "next_weight": optional(b, source, f"{next_norm}.weight", width),
            "next_bias": optional(b, source, f"{next_norm}.bias", width),
            "modulation": modulation,
            "out": out,
            "ROWS": rows,
            "inverse_scale": inverse(following),
        }
        | asked,
        {"N": width, "WIDTH": power_of_two(width), "SPLITS": parts.splits if parts else 0}
        | {"FOLLOWED": int(followed)}
        | sizes,
        tuple(norm_tiles(bool(asks))),
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
    """strides: of rows, heads and batches, in elements, as the kernel names them. heads: if several, q, k and
    v are thirds of one matrix."""
    others: list[Way] = []
    if b.chip.number == HOPPER:
        others += [_pingpong(rows, keys, dim) if heads == 1 else _resident(rows, dim, heads, batches)]
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
        *others,
        batches=batches,
    )


def _pingpong(rows: int, keys: int, dim: int) -> Way:
    return Way(
        pingpong_kernels.pingpong,
        tuple(pingpong_tiles(dim)),
        lambda t: (ceil(rows, t["BM"]),),
        lambda t: {
            "q_tiles": Tiling("q", rows, dim, t["BM"], dim),
            "k_tiles": Tiling("k", keys, dim, t["BN"], dim),
            "v_tiles": Tiling("v", keys, dim, t["BN"], dim),
            "out_tiles": Tiling("out", rows, dim, t["BM"], dim // 2),
        },
    )


def _resident(rows: int, dim: int, heads: int, batches: int) -> Way:
    whole, main = (rows * batches, 3 * heads * dim), power_of_two(dim) // 2
    return Way(
        resident_kernels.resident_attention,
        tuple(resident_tiles(rows, dim)),
        lambda t: (ceil(rows, t["BM"]), heads * batches),
        lambda t: {
            "q_tiles": Tiling("q", *whole, t["BM"], main),
            "kv_tiles": Tiling("q", *whole, t["BN"], main),
        },
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
    tall = Way(
        tall_kernels.tall_attention,
        tuple(tall_chunk_tiles(height, heads.dim, size)),
        lambda _: (n, splits),
    )
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
        *([tall] if b.chip.number == HOPPER else []),
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
