"""Stage `engine`: one component, or vision and prefill as one network, for one target."""

from collections.abc import Callable
from pathlib import Path

from export.artifacts import engine_folder, write_json
from export.engine import RECORD, EngineRecord, ort, read_lock, tensorrt
from export.params import Params, load_params
from export.stage import run_stage
from pi05_runtime.lock import Lock
from pi05_runtime.staging import staged
from pi05_runtime.targets import EngineKind, find_target


def find_builder(kind: EngineKind) -> Callable[[str, str, Lock, Params, Path], EngineRecord]:
    """What builds a kind of engine."""
    if kind == "plan":
        from export.engine import plan  # Triton is a gigabyte that nothing else needs

        return plan.build
    return ort.build if kind == "ort" else tensorrt.build


def main(target: str, network: str) -> None:
    params, lock = load_params(), read_lock(target)
    with staged(engine_folder(target, network)) as out:
        record = find_builder(find_target(target).engine)(target, network, lock, params, out)
        write_json(out / RECORD, record)
    recipes = ", ".join(record.recipes.values())
    print(f"engine {target} {network}: {record.file} ({recipes}), {lock.library} {lock.version}")


if __name__ == "__main__":
    run_stage(main)
