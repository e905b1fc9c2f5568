"""Rules across fields, one function each: from a configuration's plain tree to its problems."""
