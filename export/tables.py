"""Stage `tables`: what depends on weights alone and needs no engine.

The token embedding is stored scaled and in bf16, as openpi's bf16 model computes it; modulations are
tabulated in fp32 for every step count of params.yaml.
"""

import torch
from safetensors.torch import save_file

from export.artifacts import EMBEDDING, SCHEDULE, TABLES
from export.checkpoint.canonical import read_description, read_weights
from export.model.schedule import modulation_table, times
from export.params import load_params
from export.stage import progress, run_stage
from pi05_runtime.staging import staged

ROWS = 16384
"""Rows converted at a time, so that a 1 GB table needs no second gigabyte."""


def main() -> None:
    params, geometry = load_params(), read_description().geometry
    weights = read_weights("denoise")
    with staged(TABLES) as folder:
        schedules = {
            f"modulation.{n}": modulation_table(weights, geometry, times(n))
            for n in progress(params.export.steps, desc="tables schedules")
        }
        save_file(schedules, folder / SCHEDULE)
        embedding = read_weights("embedding")["embedding.weight"].split(ROWS)
        with (folder / EMBEDDING).open("wb") as file:
            for rows in progress(embedding, desc="tables token embedding"):
                scaled = rows.to(torch.bfloat16) * geometry.prefix.width**0.5
                file.write(scaled.view(torch.int16).numpy().astype("<i2", copy=False).tobytes())
    print(f"tables: {len(schedules)} schedules, {geometry.vocabulary} token rows")


if __name__ == "__main__":
    run_stage(main)
