"""Layer 2, planted models: weights set by hand, whose mechanism is known."""
