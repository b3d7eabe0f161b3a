"""How much the embeddings of one attribute reveal about the other attributes."""
