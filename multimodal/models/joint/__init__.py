"""Several modalities of one sample as one embedding."""
