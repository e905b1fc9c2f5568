"""How a step runs on several devices."""
