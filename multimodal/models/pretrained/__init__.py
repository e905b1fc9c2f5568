"""Other projects' weights by our names."""
