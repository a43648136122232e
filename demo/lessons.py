"""What one training step sees: recorded decisions as the policy's own inputs, a little varied.

Prompt and state pass through the runtime's own preprocessing, which also serves the robot, and the pictures
were shrunk by the same resize when they were recorded. What is varied is what must not matter: a few pixels
of shift, light and colour, and the last digits of the state, which the policy would otherwise learn by heart.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Generator, Tensor

from export.stage import progress
from pi05_runtime.errors import ParamsError
from pi05_runtime.geometry import Geometry
from pi05_runtime.interface import Interface, Normalization, Statistics
from pi05_runtime.preprocess.normalize import normalize_state
from pi05_runtime.preprocess.prompt import Prompter

ARRAYS = ("suite", "cameras", "prompt", "episodes", "states", "chunks", "pictures", "ends")
MAX_PROMPT_TOKENS = 64
HELD_OUT = 20
"""One episode of so many is not learned from, but measured on."""
PROMPTS = 8
"""Prompts a decision, each with another error of the state."""
STATE_ERROR = 0.01
"""Standard deviation of that error, as a part of the range between the quantiles."""
SHIFT = 1
LIGHT, COLOUR = 0.2, 0.05
"""The largest change of contrast, and of brightness and each colour, of pixels in [-1, 1]."""


@dataclass(frozen=True)
class Demonstrations:
    """All tasks' decisions in one table. pictures uint8 [n, cameras, height, width, 3], states [n, state
    dims], chunks [n, horizon, action dims]; prompts and episodes [n], an episode's number being unique.
    suite and cameras are the same for all."""

    suite: str
    cameras: tuple[str, ...]
    pictures: NDArray[np.uint8]
    states: NDArray[np.float32]
    chunks: NDArray[np.float32]
    prompts: Sequence[str]
    episodes: NDArray[np.int32]

    def statistics(self) -> dict[str, Statistics]:
        """Of `state` and `actions`, as openpi computes them: over every row."""
        return {"state": _statistics(self.states), "actions": _statistics(np.concatenate(self.chunks))}


@dataclass(frozen=True)
class Batch:
    """images [n, cameras, 3, size, size] in [-1, 1]; tokens [n, longest] and `lengths` [n] of the prompts;
    actions and noise [n, horizon, action width]; times [n]."""

    images: Tensor
    tokens: Tensor
    lengths: Tensor
    actions: Tensor
    noise: Tensor
    times: Tensor


def read_demonstrations(folder: Path) -> Demonstrations:
    """Every task's file of `folder`. Errors: ParamsError if there is none, or one that is none."""
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise ParamsError(
            f"{folder}: no demonstrations found; record them with python -m demo.demonstrations, or "
            "with python -m demo.libero_demonstrations"
        )
    tables = [_read(file) for file in files]
    robots = {(str(table["suite"]), *table["cameras"].tolist()) for table in tables}
    if len(robots) > 1:
        raise ParamsError(
            f"{folder}: demonstrations of {len(robots)} robots found, of one expected: {sorted(robots)}; "
            "put each into a folder of its own"
        )
    suite, *cameras = robots.pop()
    pictures = [
        _decode(table["pictures"], table["ends"], len(cameras)) for table in progress(tables, desc="pictures")
    ]
    return Demonstrations(
        suite,
        tuple(cameras),
        np.concatenate(pictures),
        np.concatenate([table["states"] for table in tables]),
        np.concatenate([table["chunks"] for table in tables]),
        [str(table["prompt"]) for table in tables for _ in table["episodes"]],
        np.concatenate([1_000_000 * i + table["episodes"] for i, table in enumerate(tables)]),
    )


class Lessons:
    """Batches of demonstrations on one device. One seed, one sequence of batches."""

    def __init__(self, given: Demonstrations, geometry: Geometry, tokenizer: Path, device: str, seed: int):
        statistics = given.statistics()
        normalization = Normalization(
            "quantile", "quantile", statistics["state"], statistics["actions"], "openpi"
        )
        horizon, dims = given.chunks.shape[1:]
        self.interface = Interface(
            cameras=given.cameras,
            prompt_format="state",
            state_dims=given.states.shape[1],
            action_dims=dims,
            horizon=horizon,
            max_prompt_tokens=MAX_PROMPT_TOKENS,
            image_convention="openpi",
            normalization=normalization,
        )
        self.device, self.size, self.cameras = device, geometry.vision.image_size, len(given.cameras)
        self.generator = Generator()
        self.generator.manual_seed(seed)
        self.pictures = torch.from_numpy(given.pictures).to(device)
        prompter = Prompter(tokenizer, self.interface, geometry.vocabulary, geometry.action_width)
        tokens, lengths = self._prompts(given, prompter, np.random.default_rng(seed))
        self.tokens, self.lengths = tokens.to(device), lengths.to(device)
        low, high = (np.array(getattr(statistics["actions"], name)) for name in ("q01", "q99"))
        actions = torch.from_numpy((given.chunks - low) / (high - low + 1e-6) * 2 - 1).float()
        self.actions = F.pad(actions, (0, geometry.action_width - dims)).to(device)
        numbers = np.unique(given.episodes, return_inverse=True)[1]
        held_out = torch.from_numpy(numbers % HELD_OUT == 0)
        self.rows, self.held_out_rows = (torch.nonzero(m)[:, 0] for m in (~held_out, held_out))

    def draw(self, count: int) -> Batch:
        """The next batch to learn from."""
        g = self.generator
        rows = self.rows[torch.randint(len(self.rows), (count,), generator=g)]
        shift = torch.randint(-SHIFT, SHIFT + 1, (2, count, self.cameras), generator=g)
        contrast = 1 + LIGHT * (2 * torch.rand(count, self.cameras, 1, generator=g) - 1)
        colour = COLOUR * (2 * torch.rand(count, self.cameras, 3, generator=g) - 1)
        variants = torch.randint(PROMPTS, (count,), generator=g)
        images = self._shifted(rows, *shift.to(self.device))
        images = images * contrast.to(self.device)[..., None, None] + colour.to(self.device)[..., None, None]
        return self._batch(rows, variants, images.clamp(-1, 1), g)

    def held_out(self, most: int) -> Batch:
        """Decisions of episodes that are never drawn, unvaried, and always the same."""
        g = Generator().manual_seed(0)
        rows = self.held_out_rows[torch.randperm(len(self.held_out_rows), generator=g)[:most]]
        still = torch.zeros(2, len(rows), self.cameras, dtype=torch.long, device=self.device)
        return self._batch(rows, torch.zeros(len(rows), dtype=torch.long), self._shifted(rows, *still), g)

    def _batch(self, rows: Tensor, variants: Tensor, images: Tensor, g: Generator) -> Batch:
        """Flow times are of Beta(1.5, 1), whose distribution function is t ** 1.5, kept off 0."""
        height, width = images.shape[-2:]
        top, left = (self.size - height) // 2, (self.size - width) // 2
        edges = (left, self.size - width - left, top, self.size - height - top)
        noise = torch.randn(len(rows), *self.actions.shape[1:], generator=g)
        times = 0.001 + 0.999 * torch.rand(len(rows), generator=g) ** (2 / 3)
        return Batch(
            F.pad(images, edges, value=-1.0),
            self.tokens[variants, rows],
            self.lengths[variants, rows],
            self.actions[rows],
            noise.to(self.device),
            times.to(self.device),
        )

    def _shifted(self, rows: Tensor, down: Tensor, right: Tensor) -> Tensor:
        """Pictures [n, cameras, 3, height, width] in [-1, 1], moved by whole pixels, edges repeated."""
        pictures = self.pictures[rows]
        count, cameras, height, width, _ = pictures.shape
        y = (torch.arange(height, device=self.device) + down[..., None]).clamp(0, height - 1)
        x = (torch.arange(width, device=self.device) + right[..., None]).clamp(0, width - 1)
        n = torch.arange(count, device=self.device)[:, None, None, None]
        camera = torch.arange(cameras, device=self.device)[:, None, None]
        moved = pictures[n, camera, y[..., :, None], x[..., None, :]]
        return moved.permute(0, 1, 4, 2, 3).float() / 127.5 - 1

    def _prompts(
        self, given: Demonstrations, prompter: Prompter, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Token ids [PROMPTS, n, longest], zero behind a prompt, and lengths [PROMPTS, n]. The first
        prompt has the state as it is."""
        n, normalization = self.interface, self.interface.normalization
        spread = np.array(normalization.state.q99) - np.array(normalization.state.q01)
        ids: list[NDArray[np.int64]] = []
        for variant in progress(range(PROMPTS), desc="prompts"):
            error = STATE_ERROR * spread * rng.standard_normal(given.states.shape) * (variant > 0)
            for prompt, state in zip(given.prompts, given.states + error, strict=True):
                ids.append(prompter.ids(prompt, normalize_state(state, normalization, n.state_dims)))
        lengths = np.array([len(tokens) for tokens in ids])
        padded = np.zeros((len(ids), lengths.max()), np.int64)
        for row, tokens in zip(padded, ids, strict=True):
            row[: len(tokens)] = tokens
        shape = (PROMPTS, len(given.states))
        return torch.from_numpy(padded).reshape(*shape, -1), torch.from_numpy(lengths).reshape(shape)


def _read(file: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(file) as table:
            return {name: table[name] for name in ARRAYS}
    except (KeyError, OSError, EOFError, ValueError, BadZipFile) as error:
        raise ParamsError(
            f"{file}: {error}; arrays {list(ARRAYS)} expected, as demo/decisions.py writes them; "
            "record it again"
        ) from error


def _decode(pictures: NDArray[np.uint8], ends: NDArray[np.int64], cameras: int) -> NDArray[np.uint8]:
    files = np.split(pictures, ends[:-1])
    frames = [np.asarray(Image.open(io.BytesIO(file.tobytes())).convert("RGB")) for file in files]
    return np.stack(frames).reshape(-1, cameras, *frames[0].shape)


def _statistics(values: NDArray[np.float32]) -> Statistics:
    rows = values.mean(0), values.std(0), *np.quantile(values, (0.01, 0.99), axis=0)
    return Statistics(*(tuple(row.astype(float).round(6).tolist()) for row in rows))
