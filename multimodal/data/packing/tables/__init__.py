"""Tables of any format: how they are read, and what their columns are for."""
