"""What every other part of the package may rely on; it imports none of them."""
