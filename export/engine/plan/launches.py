"""The kinds of launch that a pi0.5 is made of: each fills in one kernel's arguments from what a layer is."""

import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from export.engine.plan.builder import Builder, Operand, Result, Value, WeightValue
from export.engine.plan.source import Linear, Source, interleave_halves, interleave_pair
from export.engine.plan.tiles import (
    attention_tiles,
    decode_attention_tiles,
    matmul_tiles,
    power_of_two,
    skinny_tiles,
    tiles,
)
from export.kernels import attention as attention_kernels
from export.kernels import decode_attention as decode_kernels
from export.kernels import matmul as matmul_kernels
from export.kernels import norm as norm_kernels
from export.kernels import skinny as skinny_kernels

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
LOG2_E = math.log2(math.e)


def ceil(n: int, by: int) -> int:
    return -(-n // by)


def activations(b: Builder, layer: Linear, *shape: int) -> Result:
    """A place for what `layer` reads, in the format it reads."""
    return b.result(FP8 if layer.fp8 else BF16, *shape)


def inverse(layer: Linear | None) -> float:
    """What activations are multiplied by to become the codes that `layer` reads."""
    return 1.0 if layer is None or layer.input_scale is None else 1 / layer.input_scale


@dataclass(frozen=True)
class Heads:
    """A fused q/k/v matrix, and where its parts go: `queries` heads of `dim` rotated to `queried`, and one
    head of keys and of values. queries is 0 where only the latter are left."""

    queries: int
    dim: int
    queried: Value
    keys: Value
    values: Value
    cos: Value
    sin: Value


def matmul(
    b: Builder,
    source: Source,
    name: str,
    x: Value,
    rows: int,
    *,
    out: Value | None = None,
    following: Linear | None = None,
    epilogue: str = "linear",
    residual: Value | None = None,
    heads: Heads | None = None,
    length: Value | None = None,
    size: tuple[int, int] | None = None,
) -> None:
    """x [rows, in] through the layer `name`. out: its result, for the layer `following` if that reads codes;
    with `heads` three results, rotated. length: rows that count. size: [out, in] of the layer, where outputs
    or inputs of zeros are to make it larger than it is."""
    layer = source.linear(name).grown(size)
    n, k = layer.weight.shape
    choices = tuple(matmul_tiles(b.processors, rows, n, k, layer.fp8, heads.dim if heads else None))
    count = {t: ceil(rows, t["BM"]) * ceil(n, t["BN"]) for t in choices}
    shared = {t: count[t] for t in choices if t["SPLITS"] > 1}
    scratch: dict[str, Operand] = {}
    if shared:
        elements = max(tiles * t["SPLITS"] * t["BM"] * t["BN"] for t, tiles in shared.items())
        scratch["parts"] = b.result(torch.float32, elements)
        scratch["counters"] = _counters(b, max(shared.values()))
    b.launch(
        name,
        matmul_kernels.matmul,
        _operands(b, source, name, layer, x, rows, epilogue, heads)
        | {"out": out, "residual": residual, "length": length, "inverse_scale": inverse(following)}
        | _destinations(heads)
        | scratch,
        _constants(layer, epilogue, heads),
        choices,
        lambda t: (count[t], t["SPLITS"]),
    )


def skinny(
    b: Builder,
    source: Source,
    name: str,
    x: Value,
    rows: int,
    *,
    out: Value | None = None,
    following: Linear | None = None,
    epilogue: str = "linear",
    residual: Value | None = None,
    modulation: Value | None = None,
    gate: Value | None = None,
    heads: Heads | None = None,
    length: Value | None = None,
    dt: Value | None = None,
    ahead: str | None = None,
) -> None:
    """As `matmul`, for the few rows of an action chunk; modulation: of the adaRMS norm before it. ahead: the
    layer whose weights are to be asked for meanwhile."""
    layer = source.linear(name)
    n, k = layer.weight.shape
    b.launch(
        name,
        skinny_kernels.skinny,
        _operands(b, source, name, layer, x, rows, epilogue, heads)
        | {
            "out": out,
            "residual": residual,
            "modulation": modulation,
            "gate": gate,
            "length": length,
            "dt": dt,
            "ahead": WeightValue(source.linear(ahead).weight.dtype, 0, ahead) if ahead else None,
        }
        | {"a_inverse_scale": inverse(layer), "inverse_scale": inverse(following)}
        | _destinations(heads),
        {**_constants(layer, epilogue, heads), "AHEAD": source.linear(ahead).weight.nbytes if ahead else 0},
        tuple(skinny_tiles(rows, n, k, heads.dim if heads else None)),
        lambda t: (ceil(n, t["BN"]),),
    )


def _operands(
    b: Builder,
    source: Source,
    name: str,
    layer: Linear,
    x: Value,
    rows: int,
    epilogue: str,
    heads: Heads | None,
) -> dict[str, Operand]:
    """What every product has."""
    return {
        "a": x,
        "w": b.weight(name, partial(_arranged, layer, epilogue, heads)),
        "bias": optional(b, source, f"{name}.bias", len(layer.weight)),
        "M": rows,
        "scale": layer.scale * (layer.input_scale or 1.0),
    }


def _destinations(heads: Heads | None) -> dict[str, Operand]:
    if heads is None:
        return {}
    places = {"out": heads.queried, "keys": heads.keys, "values": heads.values}
    return {**places, "cos": heads.cos, "sin": heads.sin}


def _constants(layer: Linear, epilogue: str, heads: Heads | None) -> dict[str, int | str]:
    n, k = layer.weight.shape
    if heads:
        return {"N": n, "K": k, "HEADS": heads.queries, "D": heads.dim, "EPILOGUE": "rope"}
    return {"N": n, "K": k, "HEADS": 0, "D": 0, "EPILOGUE": epilogue}


def _arranged(layer: Linear, epilogue: str, heads: Heads | None) -> Tensor:
    """The weight with its columns where the epilogue wants them."""
    if heads:
        return interleave_halves(layer.weight, heads.queries + 1, heads.dim)
    return interleave_pair(layer.weight) if epilogue == "geglu" else layer.weight


def optional(b: Builder, source: Source, name: str, size: int) -> Value | None:
    """A vector of the component, if it has it, with zeros up to `size`."""
    if name not in source:
        return None
    return b.weight(name, lambda: _grown(source.tensor(name), size))


def _grown(vector: Tensor, size: int) -> Tensor:
    return F.pad(vector, (0, size - len(vector)))


def _counters(b: Builder, count: int) -> Value:
    """Zeros, which every kernel that counts in them leaves as they were."""
    return b.weight(f"counters.{count}", lambda: torch.zeros(count, dtype=torch.int32))


def norm(
    b: Builder, source: Source, name: str, x: Value, rows: int, width: int, out: Value, following: Linear
) -> None:
    """LayerNorm where the component has weights of that name, RMS otherwise."""
    b.launch(
        name,
        norm_kernels.norm,
        {
            "x": x,
            "weight": optional(b, source, f"{name}.weight", width),
            "bias": optional(b, source, f"{name}.bias", width),
            "out": out,
            "inverse_scale": inverse(following),
        },
        {"N": width, "WIDTH": power_of_two(width)},
        (tiles(4, 1),),
        lambda _: (rows,),
    )


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
    out: Value,
    following: Linear,
) -> None:
    """The chunk's queries over the cache of `prefix` rows and over its own keys."""
    choices = tuple(decode_attention_tiles(rows, prefix))
    programs, height = max(t["SPLITS"] for t in choices), choices[0]["BM"]
    n = heads.queries
    b.launch(
        name,
        decode_kernels.decode_attention,
        {
            "q": heads.queried,
            "keys": keys,
            "values": values,
            "own_keys": heads.keys,
            "own_values": heads.values,
            "length": length,
            "out": out,
            "parts": b.result(torch.float32, n, programs, height, heads.dim),
            "peaks": b.result(torch.float32, n, programs, height),
            "totals": b.result(torch.float32, n, programs, height),
            "counters": _counters(b, n),
            "M": rows,
            "scale": heads.dim**-0.5 * LOG2_E,
            "inverse_scale": inverse(following),
        },
        {"HEADS": n, "D": heads.dim},
        choices,
        lambda t: (n, t["SPLITS"]),
    )
