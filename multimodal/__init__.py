"""Train multimodal embedding models from configuration files."""

__version__ = "0.1.0"
