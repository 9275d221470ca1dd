"""Layer 4, the subjects: one face for every model that can be put under a lens. Nothing above knows which it is."""
