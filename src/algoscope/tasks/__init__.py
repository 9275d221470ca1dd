"""Layer 1, the questions: what a model is asked, which answers are right, and which inputs are alike."""
