"""Training: Lightning modules, optimization, checkpoints, callbacks."""
