"""The kinds of launch that a pi0.5 is made of: each fills in one kernel's arguments from what a layer is."""

import math
from functools import partial

import torch

from export.engine.plan.builder import Builder, Result, Value
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


def _scale(layer: Linear) -> float:
    return layer.scale * (layer.input_scale or 1.0)


class Heads:
    """A fused q/k/v matrix: queries, then a key and a value head of `dim`. queries is 0 where only the latter
    are left."""

    def __init__(
        self, queries: int, dim: int, queried: Value, keys: Value, values: Value, cos: Value, sin: Value
    ):
        self.queries, self.dim = queries, dim
        self.operands = {"out": queried, "keys": keys, "values": values, "cos": cos, "sin": sin}

    def weight(self, layer: Linear) -> torch.Tensor:
        return interleave_halves(layer.weight, self.queries + 1, self.dim)


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
) -> None:
    """x [rows, in] through the layer `name`. out: its result, for the layer `following` if that reads codes;
    with `heads` three results, rotated. length: rows that count."""
    layer = source.linear(name)
    n, k = layer.weight.shape
    arrange = partial(_arrange, layer, epilogue, heads)
    operands = {
        "a": x,
        "w": b.weight(name, arrange),
        "out": out,
        "bias": b.weight(f"{name}.bias", lambda: source.tensor(f"{name}.bias"))
        if f"{name}.bias" in source
        else None,
        "residual": residual,
        "length": length,
        "M": rows,
        "scale": _scale(layer),
        "inverse_scale": inverse(following),
    }
    constants = {"N": n, "K": k, "HEADS": 0, "D": 0, "EPILOGUE": epilogue}
    if heads:
        operands |= heads.operands
        constants |= {"HEADS": heads.queries, "D": heads.dim, "EPILOGUE": "rope"}
    b.launch(
        name,
        matmul_kernels.matmul,
        operands,
        constants,
        tuple(matmul_tiles(n, layer.fp8, heads.dim if heads else None)),
        lambda t: (ceil(rows, t["BM"]) * ceil(n, t["BN"]),),
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
) -> None:
    """As `matmul`, for the few rows of an action chunk; modulation: of the adaRMS norm before it."""
    layer = source.linear(name)
    n, k = layer.weight.shape
    operands = {
        "a": x,
        "w": b.weight(name, partial(_arrange, layer, epilogue, heads)),
        "out": out,
        "bias": b.weight(f"{name}.bias", lambda: source.tensor(f"{name}.bias"))
        if f"{name}.bias" in source
        else None,
        "residual": residual,
        "modulation": modulation,
        "gate": gate,
        "length": length,
        "dt": dt,
        "M": rows,
        "scale": _scale(layer),
        "a_inverse_scale": inverse(layer),
        "inverse_scale": inverse(following),
    }
    constants = {"N": n, "K": k, "HEADS": 0, "D": 0, "EPILOGUE": epilogue}
    if heads:
        operands |= heads.operands
        constants |= {"HEADS": heads.queries, "D": heads.dim, "EPILOGUE": "rope"}
    b.launch(
        name,
        skinny_kernels.skinny,
        operands,
        constants,
        tuple(skinny_tiles(rows, n, k, heads.dim if heads else None)),
        lambda t: (ceil(n, t["BN"]),),
    )


def norm(
    b: Builder, source: Source, name: str, x: Value, rows: int, width: int, out: Value, following: Linear
) -> None:
    """LayerNorm where the component has weights of that name, RMS otherwise."""
    weighted = f"{name}.weight" in source
    b.launch(
        name,
        norm_kernels.norm,
        {
            "x": x,
            "weight": b.weight(f"{name}.weight", lambda: source.tensor(f"{name}.weight"))
            if weighted
            else None,
            "bias": b.weight(f"{name}.bias", lambda: source.tensor(f"{name}.bias")) if weighted else None,
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
        operands | strides,
        {"D": dim, "MAIN": main, "REST": rest},
        tuple(attention_tiles(rows)),
        lambda t: (ceil(rows, t["BM"]), heads * batches),
    )


def decode_attention(
    b: Builder,
    name: str,
    heads: Heads,
    rows: int,
    keys: Value,
    values: Value,
    length: Value,
    out: Value,
    following: Linear,
) -> None:
    """The chunk's queries over the cache and over its own keys."""
    choices = tuple(decode_attention_tiles(rows))
    splits, height = max(t["SPLITS"] for t in choices), choices[0]["BM"]
    n, own = heads.queries, heads.operands
    counters = b.weight("counters", lambda: torch.zeros(n, dtype=torch.int32))
    b.launch(
        name,
        decode_kernels.decode_attention,
        {
            "q": own["out"],
            "keys": keys,
            "values": values,
            "own_keys": own["keys"],
            "own_values": own["values"],
            "length": length,
            "out": out,
            "parts": b.result(torch.float32, n, splits, height, heads.dim),
            "peaks": b.result(torch.float32, n, splits, height),
            "totals": b.result(torch.float32, n, splits, height),
            "counters": counters,
            "M": rows,
            "scale": heads.dim**-0.5 * LOG2_E,
            "inverse_scale": inverse(following),
        },
        {"HEADS": n, "D": heads.dim},
        choices,
        lambda t: (n, t["SPLITS"]),
    )


def _arrange(layer: Linear, epilogue: str, heads: Heads | None) -> torch.Tensor:
    if heads:
        return heads.weight(layer)
    return interleave_pair(layer.weight) if epilogue == "geglu" else layer.weight
