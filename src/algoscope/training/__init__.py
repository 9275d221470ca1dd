"""Layer 3, training: recipes, the one loop, the run folder, and what the curves say."""
