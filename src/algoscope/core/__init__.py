"""Layer 0, the vocabulary: errors, names, sites, labelled results. Imports nothing else of algoscope."""
