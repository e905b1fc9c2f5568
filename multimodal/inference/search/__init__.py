"""Tables of embeddings, indices over them, queries, the search page."""
