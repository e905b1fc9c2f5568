"""What ends a run: signals, a rank that is silent, a metric that no longer improves."""
