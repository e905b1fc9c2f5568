"""Hard negatives that samples list: as texts, as other samples, as files, or by swapped words."""
