"""Checkpoints as they are published, opened strictly into one canonical form."""
