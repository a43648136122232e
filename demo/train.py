"""Trains the demo's policies: a small pi0.5 that learns a suite's tasks from recorded demonstrations.

Flow matching as openpi trains pi0.5, on the plain reference model, so that what is learned is exactly what
the pipeline exports: actions are mixed with noise at a random time, and the network learns the velocity that
leads from the actions to the noise. Padding dimensions are learned too, as zeros. What is written is the
moving average of the weights. On the CPU one seed gives one checkpoint, bit for bit; on a GPU the same
batches, but sums in another order.

    python -m demo.train DEMONSTRATIONS OUTPUT [--steps N] [--batch N] [--device cuda]
"""

import argparse
import math
import time
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from demo.lessons import Batch, Demonstrations, Lessons, read_demonstrations
from demo.openpi_layout import norm_stats, write_openpi
from export.model.reference import Norm, Reference
from export.stage import run_stage
from pi05_runtime.geometry import Geometry, Stack, Vision

TOKENIZER = Path(__file__).with_name("tokenizer.model")
DEMO = Geometry(
    vision=Vision(image_size=112, patch=14, width=128, depth=3, heads=4, mlp=256),
    prefix=Stack(width=256, depth=3, heads=8, head_dim=16, mlp=384),
    expert=Stack(width=128, depth=3, heads=8, head_dim=16, mlp=256),
    vocabulary=1024,
)
STEPS, BATCH = 7000, 256
RATE = 1e-3
WARMUP, AVERAGED = 1 / 40, 1 / 20
"""Parts of the training: in which the learning rate rises, and over which weights are averaged."""
REPORTS = 20


def initialise(model: Reference, seed: int) -> None:
    """Matrices scaled by their inputs; adaRMS without modulation and with open gates."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            is_scale = name.endswith(("layer_norm1.weight", "layer_norm2.weight", "post_layernorm.weight"))
            parameter.data.fill_(float(is_scale))
        else:
            columns = parameter[0].numel()
            parameter.data.normal_(std=columns**-0.5, generator=generator)
    for norm in (m for m in model.expert.modules() if isinstance(m, Norm)):
        norm.dense.weight.data.zero_()
        norm.dense.bias.data.chunk(3)[2].fill_(1)


def flow_loss(model: Reference, batch: Batch) -> Tensor:
    """Mean squared error of the velocity, over all dimensions, one value a dimension: [action width]."""
    n, cameras = batch.images.shape[:2]
    image_tokens = model.embed_images(batch.images.flatten(0, 1)).unflatten(0, (n, cameras)).flatten(1, 2)
    prefix = torch.cat([image_tokens, model.embed_prompt(batch.tokens)], 1)
    places = torch.arange(prefix.shape[1], device=prefix.device)
    valid = places < image_tokens.shape[1] + batch.lengths[:, None]
    t = batch.times[:, None, None]
    x = t * batch.noise + (1 - t) * batch.actions
    velocity = model.velocity(x, batch.times, model.prefill(prefix, valid), valid)
    return (velocity - (batch.noise - batch.actions)).square().mean((0, 1))


def rate(step: int, steps: int) -> float:
    """Learning rate: linear warm-up, then half a cosine down to zero."""
    return RATE * min(1.0, (step + 1) / (WARMUP * steps)) * (1 + math.cos(math.pi * step / steps)) / 2


def train(
    given: Demonstrations, geometry: Geometry, steps: int, batch: int, device: str, seed: int
) -> tuple[dict[str, Tensor], list[float]]:
    """(averaged weights under canonical names, on the CPU, and the held-out losses of the reports)."""
    torch.set_float32_matmul_precision("high")
    lessons = Lessons(given, geometry, TOKENIZER, device, seed)
    model = Reference(geometry)
    initialise(model, seed)
    model.to(device)
    keep = max(0.0, 1 - 1 / (AVERAGED * steps))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(keep))
    averaged = cast(Reference, average.module)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    real = lessons.interface.action_dims
    print(f"{len(lessons.rows)} decisions to learn from, {len(lessons.held_out_rows)} held out", flush=True)
    held_out, every, start = lessons.held_out(512), max(1, steps // REPORTS), time.perf_counter()
    compiled = flow_loss if device == "cpu" else torch.compile(flow_loss)
    recent: list[Tensor] = []
    losses: list[float] = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps)
        loss = compiled(model, lessons.draw(batch))
        optimizer.zero_grad()
        loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model)
        recent.append(loss[:real].detach().mean())
        if (step + 1) % every == 0:
            with torch.no_grad():
                losses.append(float(flow_loss(averaged, held_out)[:real].mean()))
            learned, seconds = float(torch.stack(recent).mean()), time.perf_counter() - start
            print(
                f"step {step + 1}: loss {learned:.4f}, held out {losses[-1]:.4f}, {seconds:.0f} s",
                flush=True,
            )
            recent.clear()
    return {name: weight.cpu() for name, weight in averaged.state_dict().items()}, losses


def main(*arguments: str) -> None:
    parser = argparse.ArgumentParser(description="Train the demo's policy on recorded demonstrations.")
    parser.add_argument("demonstrations", type=Path, help="folder of recorded .npz files")
    parser.add_argument("output", type=Path, help="checkpoint directory to write")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    given = read_demonstrations(options.demonstrations)
    weights, _ = train(given, DEMO, options.steps, options.batch, options.device, seed=0)
    assets = norm_stats(given.suite, given.statistics())
    write_openpi(options.output, weights, DEMO, given.chunks.shape[1], assets)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    run_stage(main)
