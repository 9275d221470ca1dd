"""Layer 3, runs: the run folder and what its curves say."""
