"""Lenses on the weights alone."""
