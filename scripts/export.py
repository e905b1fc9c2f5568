"""A model as files of its own: python scripts/export.py checkpoint=PATH output=FOLDER."""

from multimodal.cli.weights.export import command

if __name__ == "__main__":
    command()
