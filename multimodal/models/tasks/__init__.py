"""What is read from a fused representation."""
