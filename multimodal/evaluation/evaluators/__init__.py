"""What is asked of a set, a module per question."""
