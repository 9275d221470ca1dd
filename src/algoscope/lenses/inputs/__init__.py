"""Inputs drawn by lenses."""
