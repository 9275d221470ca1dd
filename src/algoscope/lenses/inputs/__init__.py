"""Inputs that lenses draw themselves."""
