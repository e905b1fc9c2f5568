"""Trains an experiment: python scripts/train.py +experiment=NAME [group=choice] [key=value]."""

from multimodal.cli.main import train

if __name__ == "__main__":
    train()
