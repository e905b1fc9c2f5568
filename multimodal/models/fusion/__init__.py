"""Tokens of several modalities to one representation."""
