"""What of a bundle is run: the golden sample as the networks get it, and the files of a target's engines."""

from collections.abc import Mapping
from pathlib import Path

from pi05_runtime import golden
from pi05_runtime.manifest import EngineFile, Manifest
from pi05_runtime.preprocess import Inputs, Preprocessor
from pi05_runtime.rebuilt import read_rebuilt
from pi05_runtime.tables import TokenEmbedding
from pi05_runtime.targets import find_target
from pi05_runtime.tensors import Floats
from pi05_runtime.tuned import read_tuned
from pi05_runtime.verify import target_files


def golden_inputs(bundle: Path, manifest: Manifest) -> tuple[Inputs, Floats]:
    """(inputs, noise). Errors: BundleError."""
    sample, _ = golden.observation(bundle, manifest.golden.file, manifest.golden.prompt)
    noise = sample.pop("noise")
    g = manifest.geometry
    table = TokenEmbedding.open(bundle / manifest.token_embedding, g.vocabulary, g.prefix.width)
    prepare = Preprocessor(g, manifest.interface, manifest.prompt_buckets, bundle / manifest.tokenizer, table)
    return prepare(sample), noise


def engine_files(
    bundle: Path, manifest: Manifest, target: str, engines: Path | None
) -> tuple[Path, Mapping[str, EngineFile]]:
    """(folder, network -> file in it): the bundle's own, or those that a device rebuilt.

    Errors: BundleError.
    """
    if engines is not None and find_target(target).from_onnx:
        return engines, read_rebuilt(engines, bundle, manifest, target).engines
    return bundle, target_files(manifest, target).engines


def chosen_variants(bundle: Path, target: str, engines: Path | None) -> Mapping[str, Mapping[str, int]]:
    """Network -> group of launches -> variant, where `pi05 tune` chose. Errors: BundleError."""
    if engines is None or find_target(target).engine != "plan":
        return {}
    return read_tuned(engines, bundle, target).choices
