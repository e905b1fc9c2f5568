"""Checkpoints: their files, their weights, the model in them."""
