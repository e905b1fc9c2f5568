"""One file of a sharded checkpoint: python scripts/join_checkpoint.py FOLDER OUTPUT."""

from multimodal.cli.join_checkpoint import command

if __name__ == "__main__":
    command()
