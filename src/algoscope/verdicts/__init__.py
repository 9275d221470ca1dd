"""Layer 6, the verdicts: claims about whole sets of inputs, checked exactly, with counterexamples."""
