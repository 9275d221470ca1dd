"""Lenses on induction heads."""
