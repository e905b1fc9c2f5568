"""A search page: python scripts/serve.py checkpoint=PATH index=PATH."""

from multimodal.cli.serve import command

if __name__ == "__main__":
    command()
