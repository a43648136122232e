"""The three components as launches: the networks of export/model/components.py, in the same order."""

import torch

from export.engine.plan.builder import Builder, PortValue
from export.engine.plan.launches import (
    BF16,
    Heads,
    activations,
    attention,
    ceil,
    decode_attention,
    matmul,
    norm,
    skinny,
)
from export.engine.plan.source import Source
from export.engine.plan.tiles import DEPTH, power_of_two, tiles
from export.kernels import embed
from pi05_runtime.geometry import Geometry

FP32, INT32 = torch.float32, torch.int32


def vision(b: Builder, s: Source, g: Geometry, views: int) -> None:
    """images -> image_tokens."""
    v, rows = g.vision, views * g.vision.tokens
    width, head = v.width, v.width // v.heads
    # SigLIP's hidden units are no multiple of what a product takes at a time.
    mlp = ceil(v.mlp, DEPTH) * DEPTH
    side, pixels = v.image_size // v.patch, 3 * v.patch**2
    x = b.result(BF16, rows, width)
    b.launch(
        "patch_embedding",
        embed.patch_embedding,
        {
            "images": b.port("images", FP32),
            "w": b.weight("patch_embedding", lambda: s.tensor("patch_embedding.weight").t()),
            "bias": b.weight("patch_embedding.bias", lambda: s.tensor("patch_embedding.bias")),
            "position": b.weight("position", lambda: s.tensor("position")),
            "out": x,
            "ROWS": rows,
        },
        {"N": width, "SIDE": side, "PATCH": v.patch, "K": pixels},
        (tiles(4, 3, BM=64, BN=64, BK=32),),
        lambda t: (ceil(rows, t["BM"]), ceil(width, t["BN"])),
    )
    for i in range(v.depth):
        layer = f"layers.{i}"
        y = activations(b, s.linear(f"{layer}.qkv"), rows, width)
        norm(b, s, f"{layer}.norm1", x, rows, width, y, s.linear(f"{layer}.qkv"))
        qkv = b.result(BF16, rows, 3 * width)
        matmul(b, s, f"{layer}.qkv", y, rows, out=qkv)
        mixed = activations(b, s.linear(f"{layer}.out"), rows, width)
        row, batch = 3 * width, v.tokens * 3 * width
        strides = {
            "Q_ROW": row,
            "Q_HEAD": head,
            "Q_BATCH": batch,
            "K_ROW": row,
            "K_HEAD": head,
            "K_BATCH": batch,
        }
        strides |= {"OUT_ROW": width, "OUT_HEAD": head, "OUT_BATCH": v.tokens * width}
        attention(
            b, f"{layer}.attention", qkv, qkv.at(width), qkv.at(2 * width), mixed, s.linear(f"{layer}.out"),
            rows=v.tokens, keys=v.tokens, dim=head, strides=strides, heads=v.heads, batches=views,
        )  # fmt: skip
        after = b.result(BF16, rows, width)
        matmul(b, s, f"{layer}.out", mixed, rows, out=after, residual=x)
        y = activations(b, s.linear(f"{layer}.fc1"), rows, width)
        norm(b, s, f"{layer}.norm2", after, rows, width, y, s.linear(f"{layer}.fc1"))
        hidden = activations(b, s.linear(f"{layer}.fc2"), rows, mlp)
        matmul(
            b, s, f"{layer}.fc1", y, rows, out=hidden, following=s.linear(f"{layer}.fc2"), epilogue="gelu",
            size=(mlp, width),
        )  # fmt: skip
        x = b.result(BF16, rows, width)
        matmul(b, s, f"{layer}.fc2", hidden, rows, out=x, residual=after, size=(width, mlp))
    y = activations(b, s.linear("projector"), rows, width)
    norm(b, s, "norm", x, rows, width, y, s.linear("projector"))
    matmul(b, s, "projector", y, rows, out=b.port("image_tokens", BF16))


def prefill(b: Builder, s: Source, g: Geometry, image_tokens: int, prompt: int) -> None:
    """image_tokens, prompt_embeddings, prefix_length -> keys, values."""
    p, rows = g.prefix, image_tokens + prompt
    length = b.port("prefix_length", INT32)
    cos, sin = (b.weight(name, lambda name=name: s.tensor(name)) for name in ("cos", "sin"))
    x = b.result(BF16, rows, p.width)
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

    for i in range(p.depth - 1):
        layer = f"layers.{i}"
        heads = cache(i, p.heads)
        y = activations(b, s.linear(f"{layer}.qkv"), rows, p.width)
        norm(b, s, f"{layer}.attention_norm", x, rows, p.width, y, s.linear(f"{layer}.qkv"))
        matmul(b, s, f"{layer}.qkv", y, rows, heads=heads, length=length)
        mixed = activations(b, s.linear(f"{layer}.o"), rows, p.heads * p.head_dim)
        one = {"Q_ROW": p.head_dim, "K_ROW": p.head_dim, "OUT_ROW": p.head_dim}
        none = dict.fromkeys(("Q_HEAD", "Q_BATCH", "K_HEAD", "K_BATCH", "OUT_HEAD", "OUT_BATCH"), 0)
        attention(
            b, f"{layer}.attention", heads.queried, heads.keys, heads.values, mixed, s.linear(f"{layer}.o"),
            rows=rows * p.heads, keys=rows, dim=p.head_dim, strides=one | none, length=length,
        )  # fmt: skip
        after = b.result(BF16, rows, p.width)
        matmul(b, s, f"{layer}.o", mixed, rows, out=after, residual=x, length=length)
        y = activations(b, s.linear(f"{layer}.gate_up"), rows, p.width)
        norm(b, s, f"{layer}.mlp_norm", after, rows, p.width, y, s.linear(f"{layer}.gate_up"))
        down = s.linear(f"{layer}.down")
        hidden = activations(b, down, rows, p.mlp)
        matmul(b, s, f"{layer}.gate_up", y, rows, out=hidden, following=down, epilogue="geglu", length=length)
        x = b.result(BF16, rows, p.width)
        matmul(b, s, f"{layer}.down", hidden, rows, out=x, residual=after, length=length)
    y = activations(b, s.linear("last.kv"), rows, p.width)
    norm(b, s, "last.norm", x, rows, p.width, y, s.linear("last.kv"))
    matmul(b, s, "last.kv", y, rows, heads=cache(p.depth - 1, 0), length=length)


def denoise(b: Builder, s: Source, g: Geometry, horizon: int, prefix: int) -> None:
    """x, modulation, dt, keys, values, prefix_length -> x_next: one Euler step."""
    e, row = g.expert, 3 * g.expert.width
    length = b.port("prefix_length", INT32)
    cos, sin = (b.weight(name, lambda name=name: s.tensor(name)) for name in ("cos", "sin"))

    def part(norm: int, which: int) -> PortValue:
        """Of a modulation: scale and shift from 0 on, gate at 2."""
        return b.port("modulation", FP32, norm * row + which * e.width)

    h = b.result(BF16, horizon, e.width)
    skinny(b, s, "action_in", b.port("x", FP32), horizon, out=h)
    for i in range(e.depth):
        # After the last layer comes the first, of the next step.
        layer, following = f"layers.{i}", f"layers.{(i + 1) % e.depth}"
        queried = b.result(BF16, horizon, e.heads, e.head_dim)
        own = (b.result(BF16, horizon, e.head_dim), b.result(BF16, horizon, e.head_dim))
        heads = Heads(e.heads, e.head_dim, queried, *own, cos, sin)
        skinny(
            b,
            s,
            f"{layer}.qkv",
            h,
            horizon,
            heads=heads,
            length=length,
            modulation=part(2 * i, 0),
            ahead=f"{layer}.gate_up",
        )
        o, down = s.linear(f"{layer}.o"), s.linear(f"{layer}.down")
        mixed = activations(b, o, horizon, e.heads * e.head_dim)
        keys, values = (b.port(name, BF16, i * prefix * e.head_dim) for name in ("keys", "values"))
        decode_attention(b, f"{layer}.attention", heads, horizon, prefix, keys, values, length, mixed, o)
        after = b.result(BF16, horizon, e.width)
        skinny(
            b,
            s,
            f"{layer}.o",
            mixed,
            horizon,
            out=after,
            residual=h,
            gate=part(2 * i, 2),
            ahead=f"{layer}.down",
        )
        hidden = activations(b, down, horizon, e.mlp)
        skinny(
            b, s, f"{layer}.gate_up", after, horizon, out=hidden, following=down, epilogue="geglu",
            modulation=part(2 * i + 1, 0), ahead=f"{following}.qkv",
        )  # fmt: skip
        h = b.result(BF16, horizon, e.width)
        skinny(
            b,
            s,
            f"{layer}.down",
            hidden,
            horizon,
            out=h,
            residual=after,
            gate=part(2 * i + 1, 2),
            ahead=f"{following}.o",
        )
    skinny(
        b, s, "action_out", h, horizon, out=b.port("x_next", FP32), epilogue="euler",
        residual=b.port("x", FP32), modulation=part(2 * e.depth, 0), dt=b.port("dt", FP32),
    )  # fmt: skip
