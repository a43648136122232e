"""What a gate judges: the engine itself where this machine has its chip, else the ONNX it was built from.

An engine built ahead of time cannot run here. Its fp32 twin can, over the very same codes and scales, so
the twin is held to the gates, the result says so, and the golden sample judges the engine on its device.
"""

from collections.abc import Collection

from export.artifacts import quantized_folder
from export.component import component_signatures
from export.engine import decision_recipes, engine_file
from export.engine.ort import TWIN
from pi05_runtime.engines import Engine, open_engine
from pi05_runtime.engines.ort import OrtEngine
from pi05_runtime.lock import device_capability
from pi05_runtime.manifest import Judged
from pi05_runtime.targets import find_target


def open_judged(target: str, networks: Collection[str]) -> tuple[Engine, Judged]:
    """What answers for the target's `networks` (components, or `prefix`) on this machine.

    Errors: ArtifactError without engines, TargetError or EngineError if one does not load.
    """
    wanted = find_target(target)
    signatures = component_signatures()
    if wanted.engine == "ort" or device_capability() == wanted.compute_capability:
        files = {network: engine_file(target, network) for network in networks}
        return open_engine(target, files, signatures), "engine"
    recipes = decision_recipes(target, networks)
    twins = {c: quantized_folder(c, recipe) / TWIN for c, recipe in recipes.items()}
    return OrtEngine(twins, signatures), "twin"
