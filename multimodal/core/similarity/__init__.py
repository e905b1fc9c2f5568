"""How embeddings are compared."""
