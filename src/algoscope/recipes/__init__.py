"""Layer 3, recipes: named functions that return a complete config; a variant calls another and changes fields."""
