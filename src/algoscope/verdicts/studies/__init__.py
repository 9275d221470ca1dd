"""Controlled comparisons over seeds."""
