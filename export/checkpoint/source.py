"""What every checkpoint layout is opened into: named tensors not yet read, and what its files say.

A layout's opener translates names and nothing else. Whether the names, shapes and values make a
pi0.5 is judged in one place for all of them (canonical.py).
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError, safe_open

from export.params import InterfaceParams
from export.stage import progress
from pi05_runtime.errors import CheckpointError
from pi05_runtime.geometry import GEMMA, PI05, SIGLIP_SO400M, Geometry
from pi05_runtime.interface import Normalization

LazyTensor = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Source:
    """tensors: canonical name -> reader. stated: what the checkpoint's own files say."""

    tensors: dict[str, LazyTensor]
    geometry: Geometry
    stated: InterfaceParams
    normalization: Normalization


def safetensors_files(directory: Path) -> list[Path]:
    """`model.safetensors`, or its shards. Errors: CheckpointError if there is neither."""
    whole = directory / "model.safetensors"
    files = [whole] if whole.is_file() else sorted(directory.glob("model-*-of-*.safetensors"))
    if not files:
        found = sorted(p.name for p in directory.iterdir()) if directory.is_dir() else "no such directory"
        raise CheckpointError(f"{directory}: expected model.safetensors or its shards, found {found}")
    return files


def open_safetensors(files: Iterable[Path]) -> dict[str, LazyTensor]:
    """Stored name -> reader over a memory map; nothing is read yet."""
    tensors: dict[str, LazyTensor] = {}
    for path in files:
        try:
            handle = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} cannot be opened ({error}): the file is truncated or not safetensors, "
                f"{path.stat().st_size if path.exists() else 0} bytes found; download it again"
            ) from None
        for name in handle.keys():  # noqa: SIM118 - not a mapping
            if name in tensors:
                raise CheckpointError(f"{path}: {name} is in another shard too; download the directory again")
            tensors[name] = lambda handle=handle, name=name: handle.get_tensor(name)
    return tensors


def read_config(directory: Path) -> dict[str, object]:
    """config.json. Errors: CheckpointError if it is not there or no JSON object."""
    path = directory / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{path} not found: it says what the weights are; download it again")
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: {error}; download it again") from None


def geometry_of(config: dict[str, object], where: Path) -> Geometry:
    """The sizes that config.json names: published variants, or a `geometry` object of its own.

    `geometry` is this project's extension for small models, such as the demo.
    """
    if "geometry" in config:
        try:
            return msgspec.convert(config["geometry"], Geometry)
        except msgspec.ValidationError as error:
            raise CheckpointError(f"{where}/config.json: geometry: {error}") from None
    variants = ("paligemma_variant", "gemma_2b"), ("action_expert_variant", "gemma_300m")
    names = [str(config.get(field, default)) for field, default in variants]
    if unknown := [n for n in names if n not in GEMMA]:
        raise CheckpointError(
            f"{where}/config.json: unknown variant {unknown}, known: {sorted(GEMMA)}; "
            "a model of other sizes needs a `geometry` object"
        )
    prefix, expert = (GEMMA[n] for n in names)
    return Geometry(SIGLIP_SO400M, prefix, expert, PI05.vocabulary)


def check_action_width(field: str, found: object, geometry: Geometry, where: Path) -> None:
    """Compares what config.json's `field` says with the weights' width."""
    if found != geometry.action_width:
        raise CheckpointError(
            f"{where}/config.json: {field} is {found}, {geometry.action_width} expected; "
            "a model of another action width needs a `geometry` object"
        )


def refuse_pi0(names: Iterable[str], where: Path) -> None:
    """pi0 has a state token and a plain expert; it is a sibling, not a damaged pi0.5."""
    marks = sorted(n for n in names if {"state_proj", "action_time_mlp_in"} & set(n.split(".")))
    if marks:
        raise CheckpointError(
            f"{where}: this is a pi0 checkpoint (it has {', '.join(marks)}), and this pipeline exports "
            "pi0.5; name a pi05 checkpoint"
        )


def file_hashes(directory: Path) -> dict[str, str]:
    """Relative path -> sha256 of every file of a checkpoint directory."""
    hashes: dict[str, str] = {}
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    for path in progress(files, desc="checkpoint hashes", unit="file"):
        with path.open("rb") as file:
            hashes[path.relative_to(directory).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes
