"""Lenses over the checkpoints of a run."""
