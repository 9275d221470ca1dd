"""What many seeds of one recipe learned."""
