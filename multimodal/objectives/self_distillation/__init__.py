"""Self-distillation and masked prediction: a tower learns from its own moving average."""
