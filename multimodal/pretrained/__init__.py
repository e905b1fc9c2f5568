"""Towers from elsewhere: key maps of other projects' weights, and what makes ours of them."""
