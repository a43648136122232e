"""A loaded bundle that acts: observation in, a chunk of actions in the robot's units out."""

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from pi05_runtime.engines import Decision, Engine, open_engine
from pi05_runtime.errors import BundleError, ObservationError
from pi05_runtime.geometry import signatures
from pi05_runtime.lock import check_runtime
from pi05_runtime.manifest import EngineFile, Manifest, read_manifest, shared_files
from pi05_runtime.preprocess import Preprocessor
from pi05_runtime.preprocess.normalize import unnormalize_actions
from pi05_runtime.rebuilt import AGAIN, manifest_sha256, read_rebuilt
from pi05_runtime.tables import Schedule, TokenEmbedding, read_schedule
from pi05_runtime.targets import find_target
from pi05_runtime.tensors import Floats
from pi05_runtime.tuned import read_tuned
from pi05_runtime.verify import target_files, verify


class Policy:
    """A verified bundle with its engines loaded. Not thread-safe: one decision at a time."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        preprocess: Preprocessor,
        engine: Engine,
        recipes: frozenset[str],
        schedule: Schedule,
        identity: Mapping[str, str],
    ) -> None:
        """recipes: that the engines were built from. identity: what decides, beside the steps; `load` says
        which."""
        self.manifest, self.engine, self.recipes = manifest, engine, recipes
        self._folder, self._preprocess, self._schedule = folder, preprocess, schedule
        self.identity = dict(identity)
        self._generator = np.random.default_rng()

    @classmethod
    def load(cls, path: Path, target: str, steps: int | None = None, engines: Path | None = None) -> "Policy":
        """See pi05_runtime.load. The policy's `identity` has the sha256 of the bundle's manifest, the target,
        and of a folder `engines` a hash of its engines' files, or of the variants that it chooses."""
        manifest = read_manifest(path)
        identity = {"manifest": manifest_sha256(path), "target": target}
        if engines is not None and find_target(target).engine != "plan":
            rebuilt = read_rebuilt(engines, path, manifest, target)
            check_runtime(target, rebuilt.lock)
            verify(engines, rebuilt.files, rebuilt.files, AGAIN)
            verify(path, manifest.files, shared_files(manifest))
            identity["engines"] = _hash(rebuilt.files)
            return cls.open(path, manifest, target, rebuilt.engines, engines, steps, identity=identity)
        entry = target_files(manifest, target)
        check_runtime(target, entry.lock)
        verify(path, manifest.files, entry.files)
        choices = {} if engines is None else read_tuned(engines, path, target).choices
        if engines is not None:
            identity["engines"] = _hash(choices)
        return cls.open(path, manifest, target, entry.engines, path, steps, choices, identity)

    @classmethod
    def open(
        cls,
        path: Path,
        manifest: Manifest,
        target: str,
        engines: Mapping[str, EngineFile],
        folder: Path,
        steps: int | None = None,
        choices: Mapping[str, Mapping[str, int]] = MappingProxyType({}),
        identity: Mapping[str, str] = MappingProxyType({}),
    ) -> "Policy":
        """Loads what has been verified. engines: network -> file, relative to `folder`. choices: of a kernel
        plan's variants. identity: as `load` finds it. Errors as `load`."""
        geometry, interface = manifest.geometry, manifest.interface
        steps = manifest.default_steps if steps is None else steps
        schedule = _read_schedule(path, manifest, steps)
        embedding = path / manifest.token_embedding
        table = TokenEmbedding.open(embedding, geometry.vocabulary, geometry.prefix.width)
        ports = signatures(geometry, len(interface.cameras), interface.horizon)
        files = {network: folder / engine.file for network, engine in engines.items()}
        recipes = frozenset(recipe for engine in engines.values() for recipe in engine.recipes.values())
        engine = open_engine(target, files, ports, choices)
        preprocess = Preprocessor(
            geometry,
            interface,
            manifest.prompt_buckets,
            path / manifest.tokenizer,
            table,
            keep_frames=engine.takes_frames,
        )
        return cls(path, manifest, preprocess, engine, recipes, schedule, identity)

    def close(self) -> None:
        """Gives back what the engines hold of the device. The policy cannot act afterwards."""
        self.engine.close()

    def __enter__(self) -> "Policy":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def steps(self) -> int:
        """Euler steps of a decision; may be set. Errors: BundleError for a count without a schedule."""
        return self._schedule.steps

    @steps.setter
    def steps(self, steps: int) -> None:
        self._schedule = _read_schedule(self._folder, self.manifest, steps)

    def infer(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """One decision.

        observation: `images` {camera: uint8 [height, width, 3] RGB, any size}, `state` float
        [state_dims] in the robot's units, `prompt` str, and optionally `noise` float32 [horizon,
        action width], the flow's starting point, drawn afresh when absent.
        Returns `actions` float32 [horizon, action_dims] in the robot's units and `timings`, in ms.
        Errors: ObservationError for a bad observation, EngineError for a result not to act on.
        """
        start = time.perf_counter()
        decision, preprocess_ms = self.decide(observation)
        interface = self.manifest.interface
        actions = unnormalize_actions(decision.actions, interface.normalization, interface.action_dims)
        total_ms = (time.perf_counter() - start) * 1e3
        timings = {"preprocess": preprocess_ms, **decision.milliseconds, "total": total_ms}
        return {"actions": actions, "timings": timings}

    def decide(self, observation: Mapping[str, Any]) -> tuple[Decision, float]:
        """The decision before unnormalisation, and the milliseconds of preprocessing.

        observation and errors as in `infer`.
        """
        start = time.perf_counter()
        inputs = self._preprocess(observation)
        noise = self._noise(observation.get("noise"))
        elapsed = (time.perf_counter() - start) * 1e3
        return self.engine.decide(inputs, noise, self._schedule), elapsed

    def _noise(self, given: npt.ArrayLike | None) -> Floats:
        shape = (self.manifest.interface.horizon, self.manifest.geometry.action_width)
        if given is None:
            return self._generator.standard_normal(shape, np.float32)
        try:
            noise = np.asarray(given, np.float32)
        except (TypeError, ValueError) as error:
            raise ObservationError(
                f"noise: {type(given).__name__} that is no array of numbers found ({error}), "
                f"{list(shape)} expected; leave it out to have it drawn"
            ) from error
        if noise.shape != shape or not np.isfinite(noise).all():
            raise ObservationError(
                f"noise: shape {list(noise.shape)} with {np.count_nonzero(~np.isfinite(noise))} non-finite "
                f"numbers found, {list(shape)} with none expected; leave it out to have it drawn"
            )
        return noise


def _hash(value: object) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()


def _read_schedule(folder: Path, manifest: Manifest, steps: int) -> Schedule:
    if type(steps) is not int:
        raise BundleError(f"steps: {steps!r} found, one of {list(manifest.steps)} expected")
    return read_schedule(folder / manifest.schedule, steps)
