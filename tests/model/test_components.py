"""The export form against the reference, in fp32: every simplification is exact."""

import pytest
import torch

from export.model.fold import build
from export.model.schedule import modulation_table, times
from pi05_runtime.interface import Interface, Normalization, Statistics
from tests.golden import CAMERAS, GEOMETRY, golden, prefix, reference, weights

EXACT = 1e-5
HORIZON = 10


def interface(cameras: int, prompt_tokens: int) -> Interface:
    return Interface(
        cameras=tuple(f"camera{i}" for i in range(cameras)),
        prompt_format="plain",
        state_dims=8,
        action_dims=7,
        horizon=HORIZON,
        max_prompt_tokens=prompt_tokens,
        image_convention="openpi",
        normalization=Normalization("quantile", "quantile", Statistics(), Statistics(), "openpi"),
    )


def actions(row: int, padding: int, steps: int) -> torch.Tensor:
    """The golden's sample `row` through the export form, with `padding` empty prompt rows."""
    g = golden()
    live = [i for i in range(CAMERAS) if g[f"in.image_mask{i}"][row]]
    tokens = g["in.tokens"][row][g["in.token_mask"][row]]
    made = {
        name: build(name, weights(), GEOMETRY, interface(len(live), len(tokens) + padding), torch.float32)
        for name in ("vision", "prefill", "denoise")
    }
    image_tokens = made["vision"](torch.stack([g[f"in.image{i}"][row] for i in live]))
    prompt = reference().embed_prompt(tokens)
    prompt = torch.cat([prompt, torch.full((padding, prompt.shape[1]), 3.0)])
    length = torch.tensor(len(image_tokens) + len(tokens), dtype=torch.int32)
    keys, values = made["prefill"](image_tokens, prompt, length)
    x, dt = g["in.noise"][row], torch.tensor(-1.0 / steps)
    for modulation in modulation_table(weights(), GEOMETRY, times(steps)):
        x = made["denoise"](x, modulation, dt, keys, values, length)
    return x


def test_golden_exercises_masks():
    g = golden()
    assert not all(g[f"in.image_mask{i}"].all() for i in range(CAMERAS))
    assert not g["in.token_mask"].all()


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10])
@torch.no_grad()
def test_actions_equal_the_reference(row: int, padding: int, steps: int):
    model = reference()
    embeddings, valid = prefix(model)
    expected = model.sample(golden()["in.noise"], model.prefill(embeddings, valid), valid, steps, "openpi")
    difference = (actions(row, padding, steps) - expected[row]).abs().max().item()
    print("difference", difference)
    assert difference <= EXACT


@torch.no_grad()
def test_rounded_frequencies_move_the_cache():
    """The switch for the ports' bf16 rotary frequencies is felt, so it cannot be dead."""
    made = [
        build("prefill", weights(), GEOMETRY, interface(1, 8), torch.float32, dtype)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    tokens, prompt = torch.randn(16, 64), torch.randn(8, 64)
    (k0, v0), (k1, _) = (m(tokens, prompt, torch.tensor(24, dtype=torch.int32)) for m in made)
    assert (k0[0] - k1[0]).abs().max() > 1e-3
    assert torch.isfinite(v0).all()


def test_every_canonical_weight_is_used_or_known_unused():
    """Folding reads each tensor of its component, except the tail that the last layer drops."""

    read: set[str] = set()

    class Watched(dict[str, torch.Tensor]):
        def __getitem__(self, key: str) -> torch.Tensor:
            read.add(key)
            return super().__getitem__(key)

    watched = Watched(weights())
    for name in ("vision", "prefill", "denoise"):
        build(name, watched, GEOMETRY, interface(2, 8), torch.float32)
    modulation_table(watched, GEOMETRY, times(2))
    last = f"prefix.layers.{GEOMETRY.prefix.depth - 1}."
    tail = ("self_attn.q_proj", "self_attn.o_proj", "mlp.", "post_attention_layernorm")
    unread = watched.keys() - read - {"embedding.weight"}
    assert unread == {n for n in watched if n.startswith(last) and n.removeprefix(last).startswith(tail)}
