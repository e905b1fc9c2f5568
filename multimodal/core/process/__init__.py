"""The running program: how it ends, where it comes from, what it must not write down."""
