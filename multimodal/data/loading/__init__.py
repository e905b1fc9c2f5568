"""From a schedule to batches, on every rank and in every worker."""
