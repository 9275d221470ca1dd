"""Tasks on the digits of numbers."""
