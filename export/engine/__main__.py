"""Stage `engine`: one component for one target."""

from export.artifacts import engine_folder, write_json
from export.engine import RECORD, check_lock, ort
from export.stage import run_stage, staged
from pi05_runtime.targets import TARGETS

BUILDERS = {"ort": ort.build}
"""Kind of engine (targets.py) -> what builds it."""


def main(target: str, component: str) -> None:
    lock = check_lock(target)
    with staged(engine_folder(target, component)) as out:
        record = BUILDERS[TARGETS[target].engine](component, lock, out)
        write_json(out / RECORD, record)
    print(f"engine {target} {component}: {record.file}, {lock.library} {lock.version}")


if __name__ == "__main__":
    run_stage(main)
