"""Shards as one endless stream."""
