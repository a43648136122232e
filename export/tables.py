"""Stage `tables`: what depends on weights alone and needs no engine.

The token embedding is stored scaled and in bf16, as openpi's bf16 model computes it; modulations are
tabulated in fp32 for every step count of params.yaml.
"""

import torch
from safetensors.torch import save_file

from export.checkpoint.canonical import FOLDER as CHECKPOINT
from export.checkpoint.canonical import read_description, read_weights
from export.model.schedule import modulation_table, times
from export.params import Params, load_params
from export.stage import ARTIFACTS, run_stage, staged
from pi05_runtime.errors import ParamsError
from pi05_runtime.preprocess import Preprocessor
from pi05_runtime.tables import TokenEmbedding

FOLDER = ARTIFACTS / "tables"
ROWS = 16384
"""Rows converted at a time, so that a 1 GB table needs no second gigabyte."""


def preprocessor(params: Params) -> Preprocessor:
    """The robot's preprocessing over this pipeline's files."""
    d = read_description()
    buckets, longest = params.export.prompt_buckets, d.interface.max_prompt_tokens
    if buckets[-1] > longest:
        raise ParamsError(
            f"export.prompt_buckets goes to {buckets[-1]}, but the checkpoint was trained with prompts of "
            f"at most {longest} tokens: lower the last bucket to {longest}"
        )
    table = TokenEmbedding(FOLDER / "token_embedding.bin", d.geometry.vocabulary, d.geometry.prefix.width)
    return Preprocessor(d.geometry, d.interface, buckets, CHECKPOINT / "tokenizer.model", table)


def main() -> None:
    params, geometry = load_params(), read_description().geometry
    weights = read_weights("denoise")
    with staged(FOLDER) as folder:
        schedules = {
            f"modulation.{n}": modulation_table(weights, geometry, times(n)) for n in params.export.steps
        }
        save_file(schedules, folder / "schedule.safetensors")
        with (folder / "token_embedding.bin").open("wb") as file:
            for rows in read_weights("embedding")["embedding.weight"].split(ROWS):
                scaled = rows.to(torch.bfloat16) * geometry.prefix.width**0.5
                file.write(scaled.view(torch.int16).numpy().astype("<i2", copy=False).tobytes())
    print(f"tables: {len(schedules)} schedules, {geometry.vocabulary} token rows")


if __name__ == "__main__":
    run_stage(main)
