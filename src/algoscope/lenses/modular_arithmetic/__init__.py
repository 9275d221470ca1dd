"""Lenses on models of modular arithmetic and finite groups."""
