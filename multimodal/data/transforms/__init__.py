"""From decoded samples to tensors, a module per kind."""
