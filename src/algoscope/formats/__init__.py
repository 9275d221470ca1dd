"""Layer 3, formats: the checkpoints of other tools, read and written."""
