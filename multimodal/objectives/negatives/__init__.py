"""Which candidates count as negatives, and how much."""
