"""Lenses on attention heads."""
