"""How many links a pool should have; the links themselves belong to a wire."""
