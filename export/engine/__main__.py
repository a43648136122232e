"""Stage `engine`: one component for one target."""

import msgspec

from export.engine import RECORD, check_lock, folder
from export.engine.ort import prove
from export.stage import run_stage, staged


def main(target: str, component: str) -> None:
    lock = check_lock(target)
    record = prove(component, lock)
    with staged(folder(target, component)) as out:
        (out / RECORD).write_bytes(msgspec.json.format(msgspec.json.encode(record)))
    print(f"engine {target} {component}: {record.file}, {lock.library} {lock.version}")


if __name__ == "__main__":
    run_stage(main)
