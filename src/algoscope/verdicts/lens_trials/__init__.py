"""The lenses tested on models whose mechanism is known."""
