"""Names that packages import when they are used, and those that they had before."""
