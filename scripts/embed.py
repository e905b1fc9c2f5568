"""A table of embeddings: python scripts/embed.py checkpoint=PATH input=PATH output=PATH."""

from multimodal.cli.embed import command

if __name__ == "__main__":
    command()
