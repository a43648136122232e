"""A bundle of kernel plans with seeded weights, made where it is measured: nothing of 3 GB has to travel.

It is a bundle like any other, golden sample included, so it is verified, tuned, judged and timed like one.
PyTorch is all that making it needs. How well a recipe does on a trained policy is another question, which the
pipeline's gates answer.
"""

from collections.abc import Mapping
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from export.engine import plan
from export.engine.plan import Described
from export.engine.plan.builder import Call
from export.kernels.compile import Binary, Chip, Refused, Specialization
from export.model.schedule import modulation_table, times
from export.params import Params
from export.stage import progress
from pi05_runtime import manifest as contract
from pi05_runtime.errors import EngineError
from pi05_runtime.geometry import Geometry
from pi05_runtime.golden import ACTIONS, IMAGE
from pi05_runtime.interface import Interface
from pi05_runtime.lock import Lock
from pi05_runtime.preprocess import Preprocessor
from pi05_runtime.staging import staged
from pi05_runtime.tables import TokenEmbedding, read_schedule
from pi05_runtime.targets import Recipe, find_target
from pi05_runtime.verify import hash_file
from validate.benchmark.profiles import STEPS, Profile
from validate.benchmark.seeded import (
    Weights,
    calibrated,
    components,
    describe,
    interface_of,
    reference_actions,
)

IMAGE_SIZE = 224
"""Of the images that a camera gives: what published figures start from."""
CALIBRATED = 2
"""Observations that fix the FP8 scales; the golden one is another."""
WORD = "reach "
TOKENIZER, EMBEDDING, SCHEDULE, GOLDEN = (
    "tokenizer.model",
    "token_embedding.bin",
    "schedule.safetensors",
    "golden.safetensors",
)
Kernels = Mapping[Specialization, Binary | Refused]


@dataclass(frozen=True)
class Maker:
    """Makes bundles of one set of weights. lock: that of the target, for which `kernels` were compiled."""

    geometry: Geometry
    weights: Weights
    device: str
    tokenizer: Path
    target: str
    kernels: Kernels
    lock: Lock
    params: Params

    def write(self, out: Path, name: str, profile: Profile, recipe: Recipe) -> dict[str, list[Call]]:
        """Network -> its launches.

        Errors: EngineError for a launch that no kernel is for, or a kernel that was not compiled.
        """
        interface, g = interface_of(profile, self.geometry), self.geometry
        with staged(out.absolute()) as folder:
            (folder / TOKENIZER).write_bytes(self.tokenizer.read_bytes())
            self._write_tables(folder)
            table = TokenEmbedding.open(folder / EMBEDDING, g.vocabulary, g.prefix.width)
            prepare = Preprocessor(g, interface, [profile.prompt], folder / TOKENIZER, table)
            samples = [_observation(g, interface, prepare, seed) for seed in range(CALIBRATED + 1)]
            given = [(prepare(sample), noise) for sample, noise in samples]
            (sample, noise), (inputs, _) = samples[0], given[0]
            modules = components(self.weights, g, interface, self.device)
            modulation = torch.from_numpy(read_schedule(folder / SCHEDULE, STEPS[-1]).modulation)
            ranges = calibrated(modules, given[1:], modulation.to(self.device), self.device)
            told = folder.parent / "described"
            chip = Chip.of(find_target(self.target).compute_capability or "")
            described = describe(chip, profile, g, recipe, modules, ranges, self.device, told)
            del modules
            calls = {network: one.builder.calls for network, (one,) in described.items()}
            with chdir(told):
                engines = self._write_plans(folder, described, recipe)
            actions = reference_actions(self.weights, g, inputs, noise, STEPS, self.device)
            tensors = {f"{IMAGE}{camera}": torch.from_numpy(i) for camera, i in sample["images"].items()}
            tensors |= {"state": torch.from_numpy(sample["state"]), "noise": torch.from_numpy(noise)}
            save_file(
                tensors | {f"{ACTIONS}{n}": a.contiguous() for n, a in actions.items()}, folder / GOLDEN
            )
            manifest = self._manifest(folder, name, profile, recipe, sample["prompt"], engines)
            (folder / contract.FILE).write_bytes(contract.encode(manifest))
        return calls

    def _write_plans(
        self, folder: Path, described: dict[str, list[Described]], recipe: Recipe
    ) -> dict[str, contract.EngineFile]:
        capability = find_target(self.target).compute_capability or ""
        engines: dict[str, contract.EngineFile] = {}
        for component in progress(list(described), desc="plans", unit="file"):
            one = described.pop(component)
            file = f"engines/{self.target}/{component}/{component}.plan"
            (folder / file).parent.mkdir(parents=True)
            used = {s: self._kernel(s) for s in plan.kernels_of(component, one)}
            weights = one[0].builder.weights
            weights.update({name: tensor.cpu() for name, tensor in weights.items()})
            plan.write(folder / file, component, capability, one, used)
            engines[component] = contract.EngineFile(file, {component: recipe}, (), {})
        return engines

    def _kernel(self, wanted: Specialization) -> Binary | Refused:
        if wanted not in self.kernels:
            raise EngineError(
                f"{wanted.kernel}: not among the {len(self.kernels)} compiled kernels; compile them for this "
                "profile and recipe with validate.benchmark.kernels, from the same source"
            )
        return self.kernels[wanted]

    def _write_tables(self, folder: Path) -> None:
        """As export.tables has them."""
        with torch.device(self.device):
            tables = {n: modulation_table(self.weights, self.geometry, times(n)) for n in STEPS}
        save_file({f"modulation.{n}": table.cpu() for n, table in tables.items()}, folder / SCHEDULE)
        scaled = self.weights["embedding.weight"] * self.geometry.prefix.width**0.5
        scaled.cpu().view(torch.int16).numpy().astype("<i2", copy=False).tofile(folder / EMBEDDING)

    def _manifest(
        self,
        folder: Path,
        name: str,
        profile: Profile,
        recipe: Recipe,
        prompt: str,
        engines: dict[str, contract.EngineFile],
    ) -> contract.Manifest:
        files = {
            p.relative_to(folder).as_posix(): hash_file(p) for p in sorted(folder.rglob("*")) if p.is_file()
        }
        threshold: dict[Recipe, float] = {recipe: self.params.gates.action_cosine[recipe]}
        return contract.Manifest(
            schema=contract.SCHEMA,
            name=name,
            version="0",
            license="Apache-2.0",
            source=contract.Source("seeded", {}),
            geometry=self.geometry,
            interface=interface_of(profile, self.geometry),
            prompt_buckets=(profile.prompt,),
            steps=STEPS,
            default_steps=STEPS[-1],
            components={},
            exported_with={"torch": str(torch.__version__)},
            calibration=contract.Calibration("", CALIBRATED),
            gates={},
            golden=contract.Golden(GOLDEN, prompt, STEPS, threshold, {}),
            tokenizer=TOKENIZER,
            token_embedding=EMBEDDING,
            schedule=SCHEDULE,
            targets={self.target: contract.TargetFiles(engines, tuple(files), self.lock)},
            files=files,
        )


def _observation(
    geometry: Geometry, interface: Interface, prepare: Preprocessor, seed: int
) -> tuple[dict[str, Any], np.ndarray]:
    """Random images, and a prompt that fills its bucket."""
    generator = np.random.default_rng(seed)
    images = {
        camera: generator.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        for camera in interface.cameras
    }
    state = generator.uniform(-1, 1, interface.state_dims).astype(np.float32)
    sample: dict[str, Any] = {"images": images, "state": state, "prompt": WORD}
    while len(prepare(sample).prompt.token_ids) < interface.max_prompt_tokens:
        sample["prompt"] += WORD
    noise = generator.standard_normal((interface.horizon, geometry.action_width), np.float32)
    return sample, noise
