"""Searches a table: python scripts/search.py checkpoint=PATH index=PATH query=WORDS."""

from multimodal.cli.search import command

if __name__ == "__main__":
    command()
