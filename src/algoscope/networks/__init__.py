"""Layer 2, the networks: the transformer in one file, its parameter counts, and how it shares prefixes."""
