"""Stage `bundle`: engines that passed every gate, and all that a robot needs beside them.

The bundle is a folder whose manifest names every file with size and hash. It holds no time, path or
machine name: the same inputs give the same hashes anywhere. A gate that failed or did not run stops
the stage before a byte is written.
"""

import shutil
from importlib import metadata
from pathlib import Path

import msgspec
import torch
from safetensors.torch import load_file, save_file

from export.artifacts import (
    BUNDLE,
    CHECKPOINT,
    EMBEDDING,
    REFERENCE,
    SCHEDULE,
    TABLE,
    TABLES,
    TOKENIZER,
    TWINS,
    WEIGHTS,
    engine_folder,
    quantized_folder,
)
from export.checkpoint.canonical import read_description
from export.component import read_calibration_set
from export.engine import read_record
from export.gates import GATES, require_acted, require_engine, require_passed
from export.layer_table import read_table
from export.observations import NOISE_SEED, Observations, seeded_noise
from export.params import Params, load_params
from export.stage import progress, run_stage
from pi05_runtime import manifest as contract
from pi05_runtime.errors import GateError
from pi05_runtime.geometry import COMPONENTS
from pi05_runtime.golden import ACTIONS, IMAGE
from pi05_runtime.layer_table import Table
from pi05_runtime.staging import staged
from pi05_runtime.targets import RECIPES, Recipe
from pi05_runtime.verify import hash_file

GOLDEN, JSON_SCHEMA = "golden.safetensors", "manifest.schema.json"
TOOLCHAIN = ("torch", "nvidia-modelopt", "onnx", "onnxscript", "onnx-graphsurgeon")
"""Libraries whose versions shape the ONNX."""


def gate_results(params: Params) -> dict[str, dict[str, contract.Gate]]:
    """target -> gate -> result. Errors: GateError unless every gate of every target passed."""
    results: dict[str, dict[str, contract.Gate]] = {}
    for target in params.targets:
        records = [require_engine(params, target, network) for network in params.networks(target)]
        if len({record.lock.version for record in records}) > 1:
            raise GateError(f"the engines of {target} were built by several versions: run `dvc repro`")
        passed = {gate: require_passed(params, target, gate) for gate in GATES}
        results[target] = {g: contract.Gate(r.cosine, r.threshold, r.judged) for g, r in passed.items()}
    return results


def variants(params: Params) -> dict[str, tuple[contract.Variant, ...]]:
    """What each component was quantized to. Errors: GateError if params.yaml says otherwise by now."""
    found: dict[str, tuple[contract.Variant, ...]] = {}
    for name in COMPONENTS:
        wanted = params.components[name]
        tables: dict[Recipe, Table] = {recipe: read_table(name, recipe) for recipe in wanted.recipes}
        for table in tables.values():
            if table.recipe != "bf16" and table.keep != wanted.keep:
                raise GateError(
                    f"{name} was quantized as {table.recipe} keeping {list(table.keep)}, params.yaml says "
                    f"{list(wanted.keep)}: run `dvc repro`"
                )
        found[name] = tuple(contract.Variant(r, t.keep, t.quantized) for r, t in tables.items())
    return found


def write_golden(path: Path, params: Params) -> contract.Golden:
    """The first held-out observation, its noise, and the BF16 reference's actions."""
    observations = Observations(params.heldout)
    sample = observations[0]
    noise = seeded_noise(NOISE_SEED)
    answers = load_file(REFERENCE / "bf16.safetensors")
    tensors = {f"{IMAGE}{camera}": torch.tensor(image) for camera, image in sample["images"].items()}
    tensors |= {"state": torch.tensor(sample["state"]), "noise": torch.tensor(noise)}
    tensors |= {f"{ACTIONS}{n}": answers[f"actions.{n}.0"] for n in params.gates.steps}
    save_file(tensors, path)
    recipes: list[Recipe] = [recipe for name in COMPONENTS for recipe in params.components[name].recipes]
    floors = params.gates.action_cosine
    thresholds: dict[Recipe, float] = {r: floors[r] for r in sorted(recipes, key=RECIPES.index)}
    return contract.Golden(GOLDEN, sample["prompt"], params.gates.steps, thresholds, params.gates.budget_ms)


def place_files(out: Path, params: Params) -> dict[str, contract.TargetFiles]:
    """Copies tables, twins and engines into `out`; returns what each target needs."""
    for file, folder in ((TOKENIZER, CHECKPOINT), (EMBEDDING, TABLES), (SCHEDULE, TABLES)):
        shutil.copyfile(folder / file, out / file)
    for component in progress(COMPONENTS, desc="bundle files", unit="component"):
        for recipe in params.components[component].recipes:
            for file in (*(f"{twin}.onnx" for twin in TWINS), WEIGHTS, TABLE):
                place = out / contract.onnx_folder(component, recipe) / file
                _copy(quantized_folder(component, recipe) / file, place)
    targets: dict[str, contract.TargetFiles] = {}
    for target in params.targets:
        engines: dict[str, contract.EngineFile] = {}
        files = [TOKENIZER, EMBEDDING, SCHEDULE, GOLDEN]
        for network in params.networks(target):
            record = read_record(target, network)
            if record.folder == "engine":
                file = f"engines/{target}/{network}/{record.file}"
                _copy(engine_folder(target, network) / record.file, out / file)
                files.append(file)
            else:
                folder = contract.onnx_folder(network, record.recipes[network])
                file = f"{folder}/{record.file}"
                files += [f"{folder}/{name}" for name in record.onnx]
            engines[network] = contract.EngineFile(file, record.recipes, record.attempts, record.layers)
        targets[target] = contract.TargetFiles(engines, tuple(files), read_record(target, "denoise").lock)
    return targets


def hash_files(folder: Path) -> dict[str, contract.File]:
    """Size and sha256 of every file below `folder`, by relative path; all are made readable."""
    files: dict[str, contract.File] = {}
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    for path in progress(paths, desc="bundle hashes", unit="file"):
        path.chmod(0o644)  # safetensors writes for its owner alone
        files[path.relative_to(folder).as_posix()] = hash_file(path)
    return files


def main() -> None:
    params, description = load_params(), read_description()
    gates, components = gate_results(params), variants(params)
    acted = {target: require_acted(params, target) for target in params.gates.closed_loop.targets}
    calibration = read_calibration_set()
    with staged(BUNDLE) as out:
        targets = place_files(out, params)
        golden = write_golden(out / GOLDEN, params)
        schema = msgspec.json.format(msgspec.json.encode(contract.json_schema()))
        (out / JSON_SCHEMA).write_bytes(schema + b"\n")
        manifest = contract.Manifest(
            schema=contract.SCHEMA,
            name=params.bundle.name,
            version=params.bundle.version,
            license=params.bundle.license,
            source=contract.Source(description.layout, description.source),
            geometry=description.geometry,
            interface=description.interface,
            prompt_buckets=params.export.prompt_buckets,
            steps=params.export.steps,
            default_steps=params.export.default_steps,
            components=components,
            exported_with={library: metadata.version(library) for library in TOOLCHAIN},
            calibration=contract.Calibration(calibration.sha256, calibration.observations),
            gates=gates,
            golden=golden,
            tokenizer=TOKENIZER,
            token_embedding=EMBEDDING,
            schedule=SCHEDULE,
            targets=targets,
            files=hash_files(out),
            closed_loop=acted,
        )
        if found := contract.contradiction(manifest):
            raise GateError(f"the bundle contradicts itself: {found}; run `dvc repro`")
        (out / contract.FILE).write_bytes(contract.encode(manifest))
    size = sum(file.size for file in manifest.files.values())
    print(f"bundle: {BUNDLE}, {len(manifest.files)} files, {size / 1e6:.1f} MB, targets {list(targets)}")


def _copy(source: Path, destination: Path) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, destination)


if __name__ == "__main__":
    run_stage(main)
