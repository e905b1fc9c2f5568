"""Sounds: filter banks, and what models of sound take."""
