"""Evaluates a checkpoint: python scripts/evaluate.py checkpoint=PATH [evaluation=NAME]."""

from multimodal.cli.evaluate import command

if __name__ == "__main__":
    command()
