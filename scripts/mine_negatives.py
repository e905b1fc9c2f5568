"""Hard negatives: python scripts/mine_negatives.py checkpoint=PATH input=SHARDS output=X.npz."""

from multimodal.cli.packing.mine import command

if __name__ == "__main__":
    command()
