"""Pure functions on embeddings."""
