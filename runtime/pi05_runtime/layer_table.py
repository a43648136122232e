"""What became of every linear layer: the table that no wildcard can hide from.

Written when a component is quantized, it travels with the ONNX, so that whoever builds an engine can hold
the engine's own layers to it.
"""

from typing import Literal

import msgspec


class Layer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A linear layer: its weight [out, in], what it is held in, and why. input_scale: None unless its
    activations are quantized too."""

    name: str
    shape: tuple[int, int]
    precision: str
    reason: Literal["recipe", "keep", "fp32 in openpi"]
    input_scale: float | None = None


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """table.json. quantized: the share of linear weights that are held in the recipe's format.
    calibration_sha256: None where nothing is quantized."""

    component: str
    recipe: str
    keep: tuple[str, ...]
    calibration_sha256: str | None
    quantized: float
    layers: tuple[Layer, ...]

    def markdown(self) -> str:
        """The table as people read it."""
        lines = [
            f"# {self.component}: {self.recipe}, {self.quantized:.1%} of linear weights quantized",
            "",
            "| layer | out | in | precision | why | activation scale |",
            "|---|---|---|---|---|---|",
        ]
        for row in self.layers:
            scale = "" if row.input_scale is None else f"{row.input_scale:.3g}"
            lines.append(
                f"| {row.name} | {row.shape[0]} | {row.shape[1]} | {row.precision} | {row.reason} | {scale} |"
            )
        return "\n".join(lines) + "\n"
