"""Models as folders that other libraries open, kept here or sent to a hub."""
