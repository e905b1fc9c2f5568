"""Rules across fields, one function each: from the plain tree of a configuration to its faults."""
