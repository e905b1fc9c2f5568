"""Pretrained towers by name: python scripts/pretrained.py list | fetch NAME ..."""

from multimodal.cli.weights.pretrained import command

if __name__ == "__main__":
    command()
