"""Layer 6, the verdicts: what holds over which inputs, counted exactly, with counterexamples."""
