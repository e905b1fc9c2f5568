"""One file of a sharded checkpoint: python scripts/join_checkpoint.py FOLDER OUTPUT."""

from __future__ import annotations

import argparse
import sys


def main(arguments: list[str] | None = None) -> None:
    """Reads the folder, verifies its hashes, and writes all of it into one file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="a checkpoint of trainer=fsdp")
    parser.add_argument("output", help="the file to write, .ckpt by convention")
    words = parser.parse_args(arguments)

    from multimodal.training import checkpoint_io

    try:
        checkpoint_io.write_atomically(checkpoint_io.read(words.folder), words.output)
    except checkpoint_io.CheckpointError as error:
        sys.exit(f"join_checkpoint: {error}")
    print(f"written: {words.output}")


if __name__ == "__main__":
    main()
