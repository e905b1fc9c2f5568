"""Makes shards of other data."""
