"""Publishes a model: multimodal publish RUN FOLDER|hub://OWNER/NAME [--dry-run]."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from multimodal.core.process.exits import errors_end_the_program

if TYPE_CHECKING:  # torch comes after the arguments
    from multimodal.inference.publish.publishing import Published


def main(words: Sequence[str] | None = None) -> None:
    """Writes the model, and prints every file of it."""
    parser = argparse.ArgumentParser("multimodal publish", description=__doc__)
    parser.add_argument(
        "run", help="a run's folder, a checkpoint, or a folder of multimodal export"
    )
    parser.add_argument("to", help="a new folder, or hub://OWNER/NAME (token: HF_TOKEN)")
    parser.add_argument(
        "--layout",
        default="auto",
        help="auto, transformers, open_clip, sentence-transformers (one tower) or ours",
    )
    parser.add_argument("--tower", help="text or image, of sentence-transformers")
    parser.add_argument("--dry-run", action="store_true", help="lists all that would leave")
    parser.add_argument("--public", action="store_true", help="of a repository that is made")
    parser.add_argument("--allowed-packages", nargs="*", default=[], metavar="NAME",
                        help="your packages that the checkpoint may build from")  # fmt: skip
    given = parser.parse_args(words)

    from multimodal.core.process.provenance import code_version
    from multimodal.inference.checkpoint import store
    from multimodal.inference.checkpoint.file import CheckpointError
    from multimodal.inference.checkpoint.load import load_checkpoint
    from multimodal.inference.checkpoint.locate import checkpoint_at
    from multimodal.inference.export import manifest
    from multimodal.inference.export.card import card, run_of
    from multimodal.inference.export.graphs import ExportError
    from multimodal.inference.load import embedder_of
    from multimodal.inference.publish.publishing import check_target, publish, publish_exported

    check_target(given.to)
    exported = Path(given.run).expanduser()
    if manifest.is_exported(exported):
        if given.layout not in ("auto", "ours"):
            raise ExportError(
                f"--layout {given.layout}: {given.run} is exported, which has one layout; publish "
                "its run or checkpoint"
            )
        _say(publish_exported(exported, given.to, given.dry_run, not given.public), given)
        return
    try:
        checkpoint = checkpoint_at(given.run)
        loaded = load_checkpoint(checkpoint, given.allowed_packages)
        step = int(store.head(checkpoint).get("global_step", 0))
    except CheckpointError as error:
        raise ExportError(str(error)) from error
    embedder = embedder_of(loaded.model, loaded.cfg, "cpu", temperatures=loaded.temperatures)
    text = card(run_of(loaded.cfg, loaded.model, step, checkpoint))
    source = {"checkpoint": checkpoint.name, "sha256": store.digest(checkpoint), **code_version()}
    done = publish(
        embedder, loaded.cfg, given.to, text, source, given.layout, given.dry_run,
        not given.public, given.tower,
    )  # fmt: skip
    _say(done, given)


def _say(done: Published, given: argparse.Namespace) -> None:
    because = f" (not transformers: {done.reason})" if done.reason else ""
    print(f"layout: {done.layout}{because}")
    for name, size in done.files.items():
        print(f"  {size:>12,} bytes  {name}")
    print(f"{'would be written' if given.dry_run else 'written'}: {given.to}")


def command() -> None:
    """`multimodal publish`."""
    with errors_end_the_program():
        main()
