"""The reference against openpi's and LeRobot's own outputs."""

import pytest
import torch

from tests.golden import golden, prefix, reference

FP32, BF16 = 1e-5, 2e-2


def furthest(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.float() - b.float()).abs().max().item()


@torch.no_grad()
def test_prefix_and_cache_match_openpi():
    model = reference()
    embeddings, valid = prefix(model)
    assert furthest(embeddings, golden()["openpi.float32.prefix_embs"]) <= FP32
    rows = valid[:, None, :, None]
    for i, (k, v) in enumerate(model.prefill(embeddings, valid)):
        assert furthest(k * rows, golden()[f"openpi.float32.k{i}"] * rows) <= FP32
        assert furthest(v * rows, golden()[f"openpi.float32.v{i}"] * rows) <= FP32


@torch.no_grad()
def test_velocity_matches_openpi():
    model = reference()
    embeddings, valid = prefix(model)
    cache = model.prefill(embeddings, valid)
    velocity = model.velocity(golden()["in.noise"], torch.tensor(1.0), cache, valid)
    assert furthest(velocity, golden()["openpi.float32.velocity_t1"]) <= FP32


@pytest.mark.parametrize("port", ["openpi", "lerobot"])
@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize(("bf16", "tolerance"), [(False, FP32), (True, BF16)])
@torch.no_grad()
def test_actions_match(port: str, steps: int, bf16: bool, tolerance: float):
    model = reference(bf16)
    # In bf16 LeRobot still computes vision in fp32, openpi does not.
    embeddings, valid = prefix(model, vision=reference(bf16 and port == "openpi"))
    cache = model.prefill(embeddings, valid)
    actions = model.sample(golden()["in.noise"], cache, valid, steps, schedule=port)
    expected = golden()[f"{port}.{'bfloat16' if bf16 else 'float32'}.steps{steps}"]
    print("furthest", port, steps, bf16, furthest(actions, expected))
    assert furthest(actions, expected) <= tolerance
