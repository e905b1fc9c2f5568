"""From a sample's bytes to arrays."""
