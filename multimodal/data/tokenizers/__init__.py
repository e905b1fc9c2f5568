"""From texts to ids."""
