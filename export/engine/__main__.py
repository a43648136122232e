"""Stage `engine`: one component, or vision and prefill as one network, for one target."""

from export.artifacts import engine_folder, write_json
from export.engine import RECORD, ort, read_lock, tensorrt
from export.params import load_params
from export.stage import run_stage
from pi05_runtime.staging import staged
from pi05_runtime.targets import find_target

BUILDERS = {"ort": ort.build, "tensorrt": tensorrt.build, "tensorrt_rtx": tensorrt.build}
"""Kind of engine (targets.py) -> what builds it."""


def main(target: str, network: str) -> None:
    params, lock = load_params(), read_lock(target)
    with staged(engine_folder(target, network)) as out:
        record = BUILDERS[find_target(target).engine](target, network, lock, params, out)
        write_json(out / RECORD, record)
    recipes = ", ".join(record.recipes.values())
    print(f"engine {target} {network}: {record.file} ({recipes}), {lock.library} {lock.version}")


if __name__ == "__main__":
    run_stage(main)
