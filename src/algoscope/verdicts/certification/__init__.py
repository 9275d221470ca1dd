"""The exact count of wrong answers."""
