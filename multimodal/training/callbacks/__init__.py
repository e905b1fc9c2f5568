"""What happens at a step's edges."""
