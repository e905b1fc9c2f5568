"""Imports foreign weights: python scripts/import_weights.py input=PATH output=PATH."""

from multimodal.cli.import_weights import command

if __name__ == "__main__":
    command()
