"""Packs data into WebDataset shards with a manifest, indexes tars, verifies them.

make_shards.py INPUT OUTPUT_FOLDER [options]   pack a folder, a table or other shards
make_shards.py index FOLDER [options]          write a manifest for tars that are there
make_shards.py verify FOLDER [options]         check hashes, counts, and that all decodes
"""

from multimodal.cli.make_shards import command

if __name__ == "__main__":
    command()
