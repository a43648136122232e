"""Stage `bundle`: engines that passed every gate, and all that a robot needs beside them.

The bundle is a folder whose manifest names every file with size and hash. It holds no time, path or
machine name: the same inputs give the same hashes anywhere. A gate that failed or did not run stops
the stage before a byte is written.
"""

import hashlib
import shutil
from pathlib import Path

import msgspec
import torch
from safetensors.torch import load_file, save_file

from export.calibrate import FOLDER as CALIBRATION
from export.calibrate import CalibrationSet, seeded_noise
from export.checkpoint.canonical import FOLDER as CHECKPOINT
from export.checkpoint.canonical import Description, read_description
from export.engine import RECORD, read_record
from export.engine import folder as engine_folder
from export.gates import NOISE_SEED, REFERENCE, read_result
from export.graph import WEIGHTS
from export.observations import Observations
from export.params import Params, load_params
from export.quantize import TWINS, read_table
from export.quantize import folder as quantized_folder
from export.stage import ARTIFACTS, progress, run_stage, staged
from export.tables import FOLDER as TABLES
from pi05_runtime import manifest as contract
from pi05_runtime.geometry import COMPONENTS
from pi05_runtime.golden import ACTIONS, IMAGE

FOLDER = ARTIFACTS / "bundle"
TOKENIZER, EMBEDDING = "tokenizer.model", "token_embedding.bin"
SCHEDULE, GOLDEN = "schedule.safetensors", "golden.safetensors"
JSON_SCHEMA = "manifest.schema.json"


def gate_results(params: Params) -> dict[str, dict[str, contract.Gate]]:
    """target -> gate -> result. Errors: GateError unless every gate of every target passed."""
    return {
        target: {
            gate: contract.Gate((result := read_result(f"{target}/{gate}")).cosine, result.threshold)
            for gate in (*COMPONENTS, "actions")
        }
        for target in params.targets
    }


def write_golden(path: Path, params: Params, description: Description) -> contract.Golden:
    """The first held-out observation, its noise, and the BF16 reference's actions."""
    observations = Observations(params.heldout)
    sample = observations[0]
    noise = seeded_noise(NOISE_SEED, description.interface.horizon, description.geometry)
    answers = load_file(REFERENCE / "bf16.safetensors")
    tensors = {f"{IMAGE}{camera}": torch.tensor(image) for camera, image in sample["images"].items()}
    tensors |= {"state": torch.tensor(sample["state"]), "noise": torch.tensor(noise)}
    tensors |= {f"{ACTIONS}{n}": answers[f"actions.{n}.0"] for n in params.gates.steps}
    save_file(tensors, path)
    return contract.Golden(
        GOLDEN, sample["prompt"], params.gates.steps, params.gates.action_cosine[params.coarsest]
    )


def place_files(out: Path, params: Params) -> dict[str, contract.TargetFiles]:
    """Copies tables, twins and engines into `out`; returns what each target needs."""
    for file, folder in ((TOKENIZER, CHECKPOINT), (EMBEDDING, TABLES), (SCHEDULE, TABLES)):
        shutil.copyfile(folder / file, out / file)
    for component in COMPONENTS:
        for file in (*(f"{twin}.onnx" for twin in TWINS), WEIGHTS, "table.json"):
            _copy(quantized_folder(component) / file, out / "onnx" / component / file)
    targets: dict[str, contract.TargetFiles] = {}
    for target in params.targets:
        engines: dict[str, str] = {}
        files = [TOKENIZER, EMBEDDING, SCHEDULE, GOLDEN]
        built_with: dict[str, str] = {}
        for component in COMPONENTS:
            record, own = read_record(target, component), f"engines/{target}/{component}"
            source = engine_folder(target, component)
            for path in sorted(p for p in source.iterdir() if p.name != RECORD):
                _copy(path, out / own / path.name)
                files.append(f"{own}/{path.name}")
            files += [f"onnx/{component}/{file}" for file in record.onnx]
            engines[component] = f"{f'onnx/{component}' if record.onnx else own}/{record.file}"
            built_with |= record.built_with
        targets[target] = contract.TargetFiles(engines, tuple(files), built_with)
    return targets


def hash_files(folder: Path) -> dict[str, contract.File]:
    """Size and sha256 of every file below `folder`, by relative path; all are made readable."""
    files: dict[str, contract.File] = {}
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    for path in progress(paths, desc="bundle hashes", unit="file"):
        path.chmod(0o644)  # safetensors writes for its owner alone
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files[path.relative_to(folder).as_posix()] = contract.File(path.stat().st_size, digest)
    return files


def main() -> None:
    params, description = load_params(), read_description()
    gates = gate_results(params)
    calibration = msgspec.json.decode((CALIBRATION / "set.json").read_bytes(), type=CalibrationSet)
    tables = {component: read_table(component) for component in COMPONENTS}
    with staged(FOLDER) as out:
        targets = place_files(out, params)
        golden = write_golden(out / GOLDEN, params, description)
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
            components={
                name: contract.Component(table.recipe, params.components[name].keep, table.quantized)
                for name, table in tables.items()
            },
            calibration=contract.Calibration(calibration.sha256, calibration.observations),
            gates=gates,
            golden=golden,
            tokenizer=TOKENIZER,
            token_embedding=EMBEDDING,
            schedule=SCHEDULE,
            targets=targets,
            files=hash_files(out),
        )
        (out / contract.FILE).write_bytes(contract.encode(manifest))
    size = sum(file.size for file in manifest.files.values())
    print(f"bundle: {FOLDER}, {len(manifest.files)} files, {size / 1e6:.1f} MB, targets {list(targets)}")


def _copy(source: Path, destination: Path) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, destination)


if __name__ == "__main__":
    run_stage(main)
