"""A job, alone or of a sweep: its folder, its start, its table."""
