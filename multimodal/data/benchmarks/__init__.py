"""The field's benchmarks: their original layouts as samples, the names of their classes."""
