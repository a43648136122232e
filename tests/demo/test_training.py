"""Training the demo's policy, on demonstrations that need no simulator: what it sees, learns and writes."""

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from demo.lessons import Demonstrations, Lessons, read_demonstrations
from demo.openpi_layout import norm_stats, write_openpi
from demo.train import TOKENIZER, flow_loss, train
from export.checkpoint.canonical import read_description, read_weights
from export.model.parameters import FILES
from export.model.reference import Reference
from pi05_runtime.errors import ParamsError
from pi05_runtime.geometry import Geometry, Stack, Vision
from pi05_runtime.preprocess.images import stage_images
from pi05_runtime.preprocess.normalize import normalize_state
from pi05_runtime.preprocess.prompt import Prompter
from tests.pipeline import run_stage

TINY = Geometry(
    vision=Vision(image_size=28, patch=14, width=32, depth=1, heads=2, mlp=32),
    prefix=Stack(width=32, depth=2, heads=2, head_dim=16, mlp=32),
    expert=Stack(width=32, depth=2, heads=2, head_dim=16, mlp=32),
    vocabulary=1024,
    action_width=8,
)
Trained = tuple[dict[str, torch.Tensor], list[float]]
CAMERAS: tuple[str, ...] = ("corner2", "gripperPOV")
PROMPTS = ("open the drawer", "push the puck to the goal")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small only wait for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def given() -> Demonstrations:
    """Two tasks, told apart by nothing but their prompts, with opposite actions."""
    rng = np.random.default_rng(0)
    n = 200
    signs = np.resize([1.0, -1.0], n).astype(np.float32)
    return Demonstrations(
        suite="metaworld",
        cameras=CAMERAS,
        pictures=rng.integers(0, 256, (n, len(CAMERAS), 21, 28, 3)).astype(np.uint8),
        states=rng.random((n, 4), np.float32),
        chunks=np.tile(signs[:, None, None], (1, 10, 4)),
        prompts=[PROMPTS[i % 2] for i in range(n)],
        episodes=np.repeat(np.arange(40, dtype=np.int32), 5),
    )


@pytest.fixture(scope="module")
def trained(given: Demonstrations) -> Trained:
    return train(given, TINY, steps=120, batch=32, device="cpu", seed=0)


def lessons(given: Demonstrations) -> Lessons:
    return Lessons(given, TINY, TOKENIZER, "cpu", seed=0)


def test_a_held_out_decision_is_what_the_runtime_would_make_of_it(given: Demonstrations):
    made = lessons(given)
    batch = made.held_out(10)
    row = int(made.held_out_rows[torch.randperm(10, generator=torch.Generator().manual_seed(0))[0]])
    frames = dict(zip(CAMERAS, given.pictures[row], strict=True))
    staged = stage_images(frames, CAMERAS, TINY.vision.image_size, "openpi")
    np.testing.assert_allclose(batch.images[0].numpy(), staged, atol=1e-6)
    state = normalize_state(given.states[row], made.interface.normalization, 4)
    prompter = Prompter(TOKENIZER, made.interface, TINY.vocabulary, TINY.action_width)
    ids = prompter.ids(given.prompts[row], state)
    assert batch.tokens[0, : batch.lengths[0]].tolist() == ids.tolist()
    assert not batch.tokens[0, batch.lengths[0] :].any()


def test_drawn_pictures_vary_and_stay_pictures(given: Demonstrations):
    made = lessons(given)
    first, second = made.draw(50), made.draw(50)
    assert not torch.equal(first.images, second.images)
    assert first.images.abs().max() <= 1


def test_held_out_episodes_are_not_drawn(given: Demonstrations):
    chunks = np.random.default_rng(1).random(given.chunks.shape, np.float32)
    made = lessons(replace(given, chunks=chunks))
    held_out = {tuple(row) for row in made.held_out(10).actions[:, 0].tolist()}
    drawn = {tuple(row) for row in made.draw(2000).actions[:, 0].tolist()}
    assert len(held_out) == 10 and len(drawn) == 190 and not held_out & drawn


def test_time_one_is_noise_and_time_zero_the_actions(given: Demonstrations, monkeypatch: pytest.MonkeyPatch):
    seen: list[torch.Tensor] = []

    def velocity(_: Reference, x: torch.Tensor, *others: object) -> torch.Tensor:
        seen.append(x)
        return torch.zeros_like(x)

    monkeypatch.setattr(Reference, "velocity", velocity)
    batch = lessons(given).draw(4)
    for time in (1.0, 0.0):
        flow_loss(Reference(TINY), replace(batch, times=torch.full((4,), time)))
    assert torch.equal(seen[0], batch.noise) and torch.equal(seen[1], batch.actions)


def test_the_loss_on_held_out_episodes_falls(trained: Trained):
    _, losses = trained
    assert losses[-1] < 0.2 * losses[0]


def test_one_seed_gives_one_set_of_weights(given: Demonstrations):
    def weights(seed: int) -> dict[str, torch.Tensor]:
        return train(given, TINY, steps=3, batch=8, device="cpu", seed=seed)[0]

    first, second, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


def test_sampled_actions_are_those_of_the_prompt(given: Demonstrations, trained: Trained):
    """The direction of time and the sign of the velocity: a loss falls with either one wrong."""
    model = Reference(TINY)
    model.load_state_dict(trained[0])
    batch = lessons(given).held_out(10)
    with torch.no_grad():
        tokens = model.embed_images(batch.images.flatten(0, 1)).reshape(10, -1, TINY.prefix.width)
        prefix = torch.cat([tokens, model.embed_prompt(batch.tokens)], 1)
        valid = torch.arange(prefix.shape[1]) < tokens.shape[1] + batch.lengths[:, None]
        actions = model.sample(batch.noise, model.prefill(prefix, valid), valid, 10, "openpi")
    assert (actions - batch.actions).abs().mean() < 0.4


def test_the_pipeline_imports_what_training_writes(given: Demonstrations, fresh_workspace: Path):
    weights, _ = train(given, TINY, steps=1, batch=4, device="cpu", seed=0)
    assets = norm_stats(given.suite, given.statistics())
    write_openpi(fresh_workspace / "demo/checkpoint", weights, TINY, 10, assets)
    run_stage(fresh_workspace, "export.checkpoint.__main__")
    folder = fresh_workspace / "artifacts/checkpoint"
    imported, description = read_weights(*FILES, folder=folder), read_description(folder)
    assert imported.keys() == weights.keys()
    assert all(torch.equal(imported[name], weights[name].bfloat16()) for name in weights)
    assert description.geometry == TINY
    assert description.interface == lessons(given).interface


def test_demonstrations_are_read_in_their_order(tmp_path: Path):
    pictures = np.random.default_rng(0).integers(0, 256, (4, 2, 21, 28, 3)).astype(np.uint8)
    for task, rows in (("reach", slice(2, 4)), ("push", slice(0, 2))):
        files = [io.BytesIO() for _ in range(4)]
        for file, frame in zip(files, pictures[rows].reshape(4, 21, 28, 3), strict=True):
            Image.fromarray(frame).save(file, "WEBP", lossless=True)
        np.savez(
            tmp_path / f"{task}.npz",
            suite=np.array("metaworld"),
            cameras=np.array(CAMERAS),
            prompt=np.array(task),
            episodes=np.array([7, 8], np.int32),
            states=np.zeros((2, 4), np.float32),
            chunks=np.zeros((2, 10, 4), np.float32),
            pictures=np.frombuffer(b"".join(file.getvalue() for file in files), np.uint8),
            ends=np.cumsum([len(file.getvalue()) for file in files]),
        )
    read = read_demonstrations(tmp_path)
    np.testing.assert_array_equal(read.pictures, pictures)
    assert list(read.prompts) == ["push", "push", "reach", "reach"]
    assert len(set(read.episodes.tolist())) == 4
    with pytest.raises(ParamsError, match=r"demo\.demonstrations"):
        read_demonstrations(tmp_path / "empty")
