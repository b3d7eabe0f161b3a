"""How much an embedding reveals about the attributes it was not asked for."""
