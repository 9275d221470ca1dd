"""Tasks on two elements of a group."""
