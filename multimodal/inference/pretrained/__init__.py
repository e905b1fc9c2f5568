"""Pretrained towers by name: fetched once, verified, and filled into a run's towers."""
