"""Reads the table of a component's layers, without what made it: the bundle needs no torch for that."""

from export.artifacts import TABLE, quantized_folder, read_json
from pi05_runtime.layer_table import Table


def read_table(component: str, recipe: str) -> Table:
    """What became of every linear of a component under a recipe. Errors: ArtifactError."""
    return read_json(quantized_folder(component, recipe) / TABLE, Table)
