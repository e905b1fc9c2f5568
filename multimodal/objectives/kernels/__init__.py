"""How a pair's loss is computed: fused, over mined negatives, or by blocks."""
