"""Comparisons of many seeds of one recipe."""
