"""LoRA and DoRA apart or merged: python scripts/adapters.py checkpoint=PATH output=PATH."""

from multimodal.cli.adapters import command

if __name__ == "__main__":
    command()
