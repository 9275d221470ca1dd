"""Tasks on strings of symbols."""
