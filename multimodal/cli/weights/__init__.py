"""Pretrained weights by name."""
