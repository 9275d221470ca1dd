"""Lenses that intervene on activations."""
