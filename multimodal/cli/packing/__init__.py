"""The options of `make_shards.py`, and what it prints."""
