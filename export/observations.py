"""Recorded observations: what a robot saw, from a folder with an index and one PNG a camera image.

Each line of `index.jsonl` is one observation with the episode it came from and the split it belongs
to, so that calibration and gates can never share an episode.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import msgspec
import numpy as np
from PIL import Image

from export.artifacts import CHECKPOINT, EMBEDDING, TABLES, TOKENIZER
from export.checkpoint.canonical import read_description
from export.params import ObservationParams, Params
from pi05_runtime.errors import ObservationError, ParamsError
from pi05_runtime.preprocess import Preprocessor
from pi05_runtime.tables import TokenEmbedding

Episodes = tuple[tuple[str, int], ...]
NOISE_SEED = 10_000
"""Seed of the first held-out observation's flow noise; calibration counts from 0."""


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of index.jsonl. images: camera name -> file beside the index."""

    task: str
    episode: int
    step: int
    split: str
    prompt: str
    state: tuple[float, ...]
    images: dict[str, str]


class Observation(TypedDict):
    """What `infer` takes: uint8 RGB [height, width, 3] a camera, and the state in its own units."""

    images: dict[str, np.ndarray]
    state: np.ndarray
    prompt: str


class Observations:
    """One split of a folder, indexable like a list: `{images, state, prompt}` as `infer` takes it."""

    def __init__(self, source: ObservationParams):
        self.folder = Path(source.path)
        self.records = [r for r in read_index(self.folder) if r.split == source.split]
        if not self.records:
            raise ObservationError(
                f"{self.folder}: no observation has split {source.split!r}; record some or name another"
            )

    def __len__(self) -> int:
        return len(self.records)

    @property
    def episodes(self) -> Episodes:
        """(task, episode) of all observations, sorted, each once."""
        return tuple(sorted({(record.task, record.episode) for record in self.records}))

    def __getitem__(self, i: int) -> Observation:
        record = self.records[i]
        return {
            "images": {camera: self._image(file) for camera, file in record.images.items()},
            "state": np.asarray(record.state, np.float32),
            "prompt": record.prompt,
        }

    def sha256(self) -> str:
        """Hash of the set: every index line and every image's bytes, in order."""
        digest = hashlib.sha256()
        for record in self.records:
            digest.update(msgspec.json.encode(record))
            for file in record.images.values():
                digest.update(hashlib.sha256((self.folder / file).read_bytes()).digest())
        return digest.hexdigest()

    def _image(self, file: str) -> np.ndarray:
        path = self.folder / file
        try:
            with Image.open(path) as image:
                return np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError) as error:  # Pillow raises the latter for a broken PNG chunk
            raise ObservationError(f"{path}: cannot be read as an image ({error}); record it again") from None


def read_index(folder: Path) -> Sequence[Record]:
    """All records of a folder. Errors: ObservationError naming the line."""
    path = folder / "index.jsonl"
    try:
        lines = path.read_bytes().splitlines()  # of bytes: text would also split at U+2028 in a prompt
    except FileNotFoundError:
        raise ObservationError(f"{path} not found: record observations first (demo/README.md)") from None
    records: list[Record] = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(msgspec.json.decode(line, type=Record))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ObservationError(f"{path}:{number}: {error}") from None
    return records


def check_disjoint(calibrated: Episodes, judged: Observations) -> None:
    """Refuses to judge on an episode that calibration saw. Errors: ObservationError naming it."""
    if shared := sorted(set(calibrated) & set(judged.episodes)):
        raise ObservationError(
            f"calibration and gates share episodes {shared[:5]}: split by episode, not by frame"
        )


def preprocessor(params: Params) -> Preprocessor:
    """The robot's own preprocessing, over the checkpoint and tables of this pipeline.

    Errors: ParamsError for a prompt bucket longer than the checkpoint was trained with.
    """
    d = read_description()
    buckets, longest = params.export.prompt_buckets, d.interface.max_prompt_tokens
    if buckets[-1] > longest:
        raise ParamsError(
            f"export.prompt_buckets goes to {buckets[-1]}, but the checkpoint was trained with prompts of "
            f"at most {longest} tokens: lower the last bucket to {longest}"
        )
    table = TokenEmbedding.open(TABLES / EMBEDDING, d.geometry.vocabulary, d.geometry.prefix.width)
    return Preprocessor(d.geometry, d.interface, buckets, CHECKPOINT / TOKENIZER, table)


def seeded_noise(seed: int) -> np.ndarray:
    """Flow noise float32 [horizon, action width]; one seed, one noise, in every stage."""
    d = read_description()
    shape = (d.interface.horizon, d.geometry.action_width)
    return np.random.default_rng(seed).standard_normal(shape, np.float32)
