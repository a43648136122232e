"""The pipeline, one module per DVC stage, read in the order of the data."""
