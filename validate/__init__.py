"""The gates: what must hold before a bundle exists. A gate that cannot run has failed."""
