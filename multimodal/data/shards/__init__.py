"""Manifests and the tars that they name, near and far."""
