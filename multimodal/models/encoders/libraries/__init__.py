"""Models of other libraries as encoders."""
