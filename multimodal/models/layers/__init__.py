"""What encoders and fusions are made of."""
