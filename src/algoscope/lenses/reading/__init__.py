"""Lenses that read what a model predicts."""
