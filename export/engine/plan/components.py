"""The three components as launches: the networks of export/model/components.py, in the same order."""

import torch

from export.engine.plan.builder import Builder, PortValue, Value
from export.engine.plan.launches import BF16, attention, decode_attention, norm
from export.engine.plan.products import (
    Heads,
    activations,
    added,
    ceil,
    matmul,
    skinny,
    skinny_added,
    thirds,
    weight,
)
from export.engine.plan.source import Source
from export.engine.plan.tiles import DEPTH, power_of_two, tiles
from export.kernels import embed
from pi05_runtime.geometry import Geometry

FP32, INT32 = torch.float32, torch.int32
STRIDES = [f"{of}_{by}" for of in ("Q", "K", "OUT") for by in ("ROW", "HEAD", "BATCH")]
"""What the attention kernel steps by, in elements."""


def vision(b: Builder, s: Source, g: Geometry, views: int) -> None:
    """images -> image_tokens."""
    v, rows = g.vision, views * g.vision.tokens
    width, head = v.width, v.width // v.heads
    # SigLIP's hidden units are no multiple of what a product takes at a time.
    mlp = ceil(v.mlp, DEPTH) * DEPTH
    pixels, columns = 3 * v.patch**2, ceil(3 * v.patch**2, DEPTH) * DEPTH
    cut = b.result(BF16, rows, 3, columns)
    b.launch(
        "patches",
        embed.patches,
        {"images": b.port("images", FP32), "out": cut},
        {"SIDE": v.image_size // v.patch, "PATCH": v.patch, "K": pixels, "WIDTH": columns},
        (tiles(4, 1), tiles(8, 1)),
        lambda _: (rows,),
    )
    embedding = thirds(s.linear("patch_embedding"), columns)
    parts = added(b, s, "patch_embedding", cut, rows, layer=embedding, sums=FP32)
    x: Value = b.weight("position", lambda: s.tensor("position").repeat(views, 1))
    row, batch = 3 * width, v.tokens * 3 * width
    strides = dict(
        zip(STRIDES, (row, head, batch, row, head, batch, width, head, v.tokens * width), strict=True)
    )
    for i in range(v.depth):
        layer = f"layers.{i}"
        out, fc1 = s.linear(f"{layer}.out"), s.linear(f"{layer}.fc1").grown((mlp, width))
        fc2 = s.linear(f"{layer}.fc2").grown((width, mlp))
        y, x = norm(
            b, s, f"{layer}.norm1", x, rows, width, s.linear(f"{layer}.qkv"), parts=parts,
            next_norm=f"{layer}.norm2", asks={f"{layer}.out": out, f"{layer}.fc1": fc1},
        )  # fmt: skip
        qkv = b.result(BF16, rows, 3 * width)
        matmul(b, s, f"{layer}.qkv", y, rows, out=qkv)
        mixed = activations(b, out, rows, width)
        attention(
            b, f"{layer}.attention", qkv, qkv.at(width), qkv.at(2 * width), mixed, out,
            rows=v.tokens, keys=v.tokens, dim=head, strides=strides, heads=v.heads, batches=views,
        )  # fmt: skip
        parts = added(b, s, f"{layer}.out", mixed, rows)
        last = i + 1 == v.depth
        following = "projector" if last else f"layers.{i + 1}.qkv"
        y, x = norm(
            b, s, f"{layer}.norm2", x, rows, width, fc1, parts=parts,
            next_norm="norm" if last else f"layers.{i + 1}.norm1",
            asks={f"{layer}.fc2": fc2, following: s.linear(following)},
        )  # fmt: skip
        hidden = activations(b, fc2, rows, mlp)
        matmul(b, s, f"{layer}.fc1", y, rows, out=hidden, following=fc2, epilogue="gelu", size=(mlp, width))
        parts = added(b, s, f"{layer}.fc2", hidden, rows, layer=fc2)
    y, _ = norm(b, s, "norm", x, rows, width, s.linear("projector"), parts=parts)
    matmul(b, s, "projector", y, rows, out=b.port("image_tokens", BF16))


def prefill(b: Builder, s: Source, g: Geometry, image_tokens: int, prompt: int) -> None:
    """image_tokens, prompt_embeddings, prefix_length -> keys, values."""
    p, rows = g.prefix, image_tokens + prompt
    length = b.port("prefix_length", INT32)
    cos, sin = (b.weight(name, lambda name=name: s.tensor(name)) for name in ("cos", "sin"))
    x: Value = b.result(BF16, rows, p.width)
    b.launch(
        "join",
        embed.join,
        {
            "first": b.port("image_tokens", BF16),
            "second": b.port("prompt_embeddings", BF16),
            "out": x,
            "FIRST": image_tokens,
        },
        {"N": p.width, "WIDTH": power_of_two(p.width)},
        (tiles(4, 1),),
        lambda _: (rows,),
    )

    def cache(layer: int, queries: int) -> Heads:
        keys, values = (b.port(name, BF16, layer * rows * p.head_dim) for name in ("keys", "values"))
        queried = b.result(BF16, rows, queries, p.head_dim) if queries else keys
        return Heads(queries, p.head_dim, queried, keys, values, cos, sin)

    # One head of keys, and the queries of all heads as its rows.
    strides = dict(zip(STRIDES, (p.head_dim, 0, 0) * 3, strict=True))
    parts = None
    for i in range(p.depth - 1):
        layer = f"layers.{i}"
        heads = cache(i, p.heads)
        qkv, o, gate_up = (s.linear(f"{layer}.{name}") for name in ("qkv", "o", "gate_up"))
        y, x = norm(b, s, f"{layer}.attention_norm", x, rows, p.width, qkv, parts=parts)
        matmul(b, s, f"{layer}.qkv", y, rows, heads=heads, length=length)
        mixed = activations(b, o, rows, p.heads * p.head_dim)
        attention(
            b, f"{layer}.attention", heads.queried, heads.keys, heads.values, mixed, o,
            rows=rows * p.heads, keys=rows, dim=p.head_dim, strides=strides, length=length,
        )  # fmt: skip
        parts = added(b, s, f"{layer}.o", mixed, rows, length=length)
        y, x = norm(b, s, f"{layer}.mlp_norm", x, rows, p.width, gate_up, parts=parts)
        down = s.linear(f"{layer}.down")
        hidden = activations(b, down, rows, p.mlp)
        matmul(b, s, f"{layer}.gate_up", y, rows, out=hidden, following=down, epilogue="geglu", length=length)
        parts = added(b, s, f"{layer}.down", hidden, rows, length=length)
    y, _ = norm(b, s, "last.norm", x, rows, p.width, s.linear("last.kv"), parts=parts)
    matmul(b, s, "last.kv", y, rows, heads=cache(p.depth - 1, 0), length=length)


def denoise(b: Builder, s: Source, g: Geometry, horizon: int, prefix: int) -> None:
    """x, modulation, dt, keys, values, prefix_length -> x_next: one Euler step."""
    e, row = g.expert, 3 * g.expert.width
    length = b.port("prefix_length", INT32)
    cos, sin = (b.weight(name, lambda name=name: s.tensor(name)) for name in ("cos", "sin"))

    def part(number: int, which: int) -> PortValue:
        """Of a norm's modulation: scale and shift from 0 on, gate at 2."""
        return b.port("modulation", FP32, number * row + which * e.width)

    h: Value = b.result(BF16, horizon, e.width)
    skinny(b, s, "action_in", b.port("x", FP32), horizon, out=h)
    parts = gate = None
    for i in range(e.depth):
        layer = f"layers.{i}"
        qkv, gate_up, down = (s.linear(f"{layer}.{name}") for name in ("qkv", "gate_up", "down"))
        queried = b.result(BF16, horizon, e.heads, e.head_dim)
        own = (b.result(BF16, horizon, e.head_dim), b.result(BF16, horizon, e.head_dim))
        heads = Heads(e.heads, e.head_dim, queried, *own, cos, sin)
        y, h = norm(
            b, s, f"{layer}.attention_norm", h, horizon, e.width, qkv, parts=parts, gate=gate,
            modulation=part(2 * i, 0), followed=True,
        )  # fmt: skip
        skinny(b, s, f"{layer}.qkv", y, horizon, heads=heads, length=length)
        keys, values = (b.port(name, BF16, i * prefix * e.head_dim) for name in ("keys", "values"))
        mixed = decode_attention(
            b, layer, heads, horizon, prefix, keys, values, length, s.linear(f"{layer}.o"),
            weight(b, s, f"{layer}.gate_up", "geglu"), gate_up.weight.nbytes,
        )  # fmt: skip
        y, h = norm(
            b, s, f"{layer}.mlp_norm", h, horizon, e.width, gate_up,
            parts=skinny_added(b, s, f"{layer}.o", mixed, horizon), gate=part(2 * i, 2),
            modulation=part(2 * i + 1, 0), followed=True,
        )  # fmt: skip
        hidden = activations(b, down, horizon, e.mlp)
        skinny(b, s, f"{layer}.gate_up", y, horizon, out=hidden, following=down, epilogue="geglu")
        parts, gate = skinny_added(b, s, f"{layer}.down", hidden, horizon), part(2 * i + 1, 2)
    y, _ = norm(
        b, s, "norm", h, horizon, e.width, s.linear("action_out"), parts=parts, gate=gate,
        modulation=part(2 * e.depth, 0),
    )  # fmt: skip
    skinny(
        b,
        s,
        "action_out",
        y,
        horizon,
        out=b.port("x_next", FP32),
        epilogue="euler",
        residual=b.port("x", FP32),
        dt=b.port("dt", FP32),
    )
