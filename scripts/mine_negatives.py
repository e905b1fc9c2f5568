"""Hard negatives: python scripts/mine_negatives.py checkpoint=PATH input=MANIFEST output=PATH.npz."""

from multimodal.cli.packing.mine import command

if __name__ == "__main__":
    command()
