"""One file of a sharded checkpoint: multimodal join FOLDER OUTPUT."""

from __future__ import annotations

import argparse

from multimodal.core.process.exits import errors_end_the_program


def main(arguments: list[str] | None = None) -> None:
    """Reads the folder, verifies its hashes, and writes all of it into one file."""
    parser = argparse.ArgumentParser("multimodal join", description=__doc__)
    parser.add_argument("folder", help="a checkpoint of trainer=fsdp")
    parser.add_argument("output", help="the file to write, .ckpt by convention")
    words = parser.parse_args(arguments)

    from multimodal.inference.checkpoint import file as checkpoint_file
    from multimodal.inference.checkpoint import store

    checkpoint_file.write_atomically(store.read(words.folder), words.output)
    print(f"written: {words.output}")


def command() -> None:
    """`multimodal join` and `python scripts/join_checkpoint.py`."""
    with errors_end_the_program():
        main()
