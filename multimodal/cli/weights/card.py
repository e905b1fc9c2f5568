"""A model card from a run: multimodal card RUN [--output README.md]."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from multimodal.core.process.exits import errors_end_the_program


def main(words: Sequence[str] | None = None) -> None:
    """Prints the card of a run's best checkpoint, or writes it."""
    parser = argparse.ArgumentParser("multimodal card", description=__doc__)
    parser.add_argument("run", help="a run's folder, or a checkpoint")
    parser.add_argument("--output", type=Path, help="file to write; without it the card is printed")
    parser.add_argument("--allowed-packages", nargs="*", default=[], metavar="NAME",
                        help="your packages that the checkpoint may build from")  # fmt: skip
    given = parser.parse_args(words)

    from multimodal.core.files import write_text
    from multimodal.inference.checkpoint import store
    from multimodal.inference.checkpoint.file import CheckpointError
    from multimodal.inference.checkpoint.load import load_checkpoint
    from multimodal.inference.checkpoint.locate import checkpoint_at
    from multimodal.inference.export.card import card, run_of
    from multimodal.inference.export.graphs import ExportError

    try:
        checkpoint = checkpoint_at(given.run)
        step = int(store.head(checkpoint).get("global_step", 0))
        model, cfg, _ = load_checkpoint(checkpoint, given.allowed_packages)
    except CheckpointError as error:
        raise ExportError(str(error)) from error
    text = card(run_of(cfg, model, step, checkpoint))
    if given.output is None:
        print(text, end="")
    else:
        write_text(given.output, text)
        print(f"written: {given.output}")


def command() -> None:
    """`multimodal card`."""
    with errors_end_the_program():
        main()
