"""What parts of a model are called."""
