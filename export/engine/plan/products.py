"""Launches that multiply by a layer's weight: each fills in one kernel's arguments from what the layer is."""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from export.engine.plan.builder import Builder, Operand, Result, Tiling, Value, Way
from export.engine.plan.source import Linear, Source, interleave_heads, interleave_pair
from export.engine.plan.tiles import (
    best_splits,
    matmul_tiles,
    persistent_splits,
    persistent_tiles,
    skinny_tiles,
    tall_splits,
    tall_tiles,
)
from export.kernels import matmul as matmul_kernels
from export.kernels import persistent as persistent_kernels
from export.kernels import skinny as skinny_kernels
from export.kernels import tall as tall_kernels
from export.kernels.epilogue import PAIRED

HOPPER = 90
"""The chip whose instructions the kernels in Gluon are written in."""
TALL_EPILOGUES = ("geglu", "rope", "parts")
"""Those that kernels/tall.py has."""


def ceil(n: int, by: int) -> int:
    return -(-n // by)


def activations(b: Builder, layer: Linear, *shape: int) -> Result:
    """A place for what `layer` reads, in the format it reads."""
    return b.result(layer.weight.dtype, *shape)


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


@dataclass(frozen=True)
class Parts:
    """A product yet to be added to a residual. sums: [splits, rows, out]. shift: of the layer."""

    sums: Value
    splits: int
    shift: Value | None


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
    heads: Heads | None = None,
    length: Value | None = None,
    size: tuple[int, int] | None = None,
) -> None:
    """x [rows, in] through the layer `name`. out: its result, for the layer `following` if that reads codes;
    with `heads` three results, rotated. length: rows that count. size: [out, in] of the layer, where outputs
    or inputs of zeros are to make it larger than it is."""
    layer = source.linear(name).grown(size)
    operands = _operands(b, source, name, layer, x, rows, epilogue, heads)
    operands |= {"bias": optional(b, source, f"{name}.bias", len(layer.weight)), "length": length}
    operands |= {"out": out, "inverse_scale": inverse(following)} | _destinations(heads)
    _matmul(b, name, layer, operands, rows, {**_constants(layer, epilogue, heads), "SPLITS": 1})


def added(
    b: Builder,
    source: Source,
    name: str,
    x: Value,
    rows: int,
    *,
    length: Value | None = None,
    layer: Linear | None = None,
    sums: torch.dtype = torch.bfloat16,
) -> Parts:
    """As `matmul`, for a result that the norm after it is to add to the residual. layer: instead of the
    source's own."""
    layer = layer or source.linear(name)
    n, k = layer.weight.shape
    choose = persistent_splits if _persists(b, rows, layer) else best_splits
    splits = choose(b.chip.processors, rows, n, k, layer.fp8)
    parts = Parts(b.result(sums, splits, rows, n), splits, optional(b, source, f"{name}.bias", n))
    operands = _operands(b, source, name, layer, x, rows, "parts", None)
    operands |= {"out": parts.sums, "length": length, "inverse_scale": 1.0}
    _matmul(b, name, layer, operands, rows, {**_constants(layer, "parts", None), "SPLITS": splits})
    return parts


def _matmul(
    b: Builder,
    name: str,
    layer: Linear,
    operands: dict[str, Operand],
    rows: int,
    constants: dict[str, int | str],
) -> None:
    (n, k), splits, divides = layer.weight.shape, int(constants["SPLITS"]), int(constants["D"])
    persistent = Way(
        persistent_kernels.persistent,
        tuple(persistent_tiles(rows, n, k, layer.fp8, divides)),
        lambda t: (min(splits * (n // t["BN"]) * ceil(rows, t["BM"] + t["MORE"]), b.chip.processors),),
        lambda t: {
            "w_tiles": Tiling("w", n, k, t["BN"], t["BK"]),
            "a_tiles": Tiling("a", rows, k, t["BM"], t["BK"]),
            "more_tiles": Tiling("a", rows, k, t["MORE"], t["BK"]),
        },
    )
    b.launch(
        name,
        matmul_kernels.matmul,
        operands,
        constants,
        tuple(matmul_tiles(rows, n, k, layer.fp8, divides)),
        lambda t: (ceil(rows, t["BM"]) * ceil(n, t["BN"]), splits),
        *([persistent] if _persists(b, rows, layer) else []),
    )


def _persists(b: Builder, rows: int, layer: Linear) -> bool:
    """Whether kernels/persistent.py has tiles for a product."""
    n, k = layer.weight.shape
    return b.chip.number == HOPPER and any(persistent_tiles(rows, n, k, layer.fp8))


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
    heads: Heads | None = None,
    length: Value | None = None,
    dt: Value | None = None,
) -> None:
    """As `matmul`, for the few rows of an action chunk."""
    layer = source.linear(name)
    operands = _operands(b, source, name, layer, x, rows, epilogue, heads)
    operands |= {"bias": optional(b, source, f"{name}.bias", len(layer.weight)), "residual": residual}
    operands |= {"out": out, "inverse_scale": inverse(following), "length": length, "dt": dt}
    constants = {**_constants(layer, epilogue, heads), "SPLITS": 1}
    _skinny(b, name, layer, operands | _destinations(heads), rows, constants)


def skinny_added(b: Builder, source: Source, name: str, x: Value, rows: int) -> Parts:
    """As `added`, for the few rows of an action chunk."""
    layer = source.linear(name)
    n, k = layer.weight.shape
    splits = tall_splits(b.chip.processors, n, k, layer.fp8) if b.chip.number == HOPPER else 1
    parts = Parts(b.result(torch.bfloat16, splits, rows, n), splits, optional(b, source, f"{name}.bias", n))
    operands = _operands(b, source, name, layer, x, rows, "parts", None)
    operands |= {"out": parts.sums, "inverse_scale": 1.0}
    _skinny(b, name, layer, operands, rows, {**_constants(layer, "parts", None), "SPLITS": splits})
    return parts


def _skinny(
    b: Builder,
    name: str,
    layer: Linear,
    operands: dict[str, Operand],
    rows: int,
    constants: dict[str, int | str],
) -> None:
    (n, k), splits, divides = layer.weight.shape, int(constants["SPLITS"]), int(constants["D"])
    paired = constants["EPILOGUE"] in ("geglu", "rope")
    tall = Way(
        tall_kernels.tall,
        tuple(tall_tiles(rows, n, k // splits, layer.fp8, divides)),
        lambda t: (n // t["BN"], splits),
        lambda t: {"w_tiles": Tiling("w", n, k, t["BN"], t["BK"])},
    )
    b.launch(
        name,
        skinny_kernels.skinny,
        operands,
        constants,
        tuple(skinny_tiles(n, k // splits, divides, 2 * PAIRED.value if paired else 1)),
        lambda t: (ceil(n, t["BN"]), ceil(rows, t["BM"]), splits),
        *([tall] if b.chip.number == HOPPER and constants["EPILOGUE"] in TALL_EPILOGUES else []),
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
        "w": _weight(b, name, layer, epilogue, heads),
        "M": rows,
        "scale": layer.scale * (layer.input_scale or 1.0),
    }


def weight(b: Builder, source: Source, name: str, epilogue: str) -> Value:
    """A layer's, as the product with that epilogue reads it."""
    return _weight(b, name, source.linear(name), epilogue, None)


def _weight(b: Builder, name: str, layer: Linear, epilogue: str, heads: Heads | None) -> Value:
    return b.weight(name, partial(_arranged, layer, epilogue, heads))


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
        return interleave_heads(layer.weight, heads.dim)
    return interleave_pair(layer.weight) if epilogue == "geglu" else layer.weight


def optional(b: Builder, source: Source, name: str, size: int) -> Value | None:
    """A vector of the component, if it has it, with zeros up to `size`."""
    if name not in source:
        return None
    return b.weight(name, lambda: _grown(source.tensor(name), size))


def _grown(vector: Tensor, size: int) -> Tensor:
    return F.pad(vector, (0, size - len(vector)))


def thirds(layer: Linear, width: int) -> Linear:
    """An fp32 layer as one of bf16 with three times `width` inputs, which embed.patches gives: the weights
    twice, then what rounding has left of them, each with zeros up to `width`."""
    high = layer.weight.bfloat16()
    low = (layer.weight - high.float()).bfloat16()
    grown = [F.pad(part, (0, width - part.shape[1])) for part in (high, high, low)]
    return Linear(torch.cat(grown, 1), 1.0, None)
