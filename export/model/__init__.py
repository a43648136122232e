"""pi0.5 in PyTorch: a plain reference and the export form, two views of one set of weights."""
