"""The whole corpus: all sources, then what is made from the finished shards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from multimodal.data.tokenizers.bpe import train_bpe

from . import digits, emoji, exercise, furniture, motion, sounds, speech, watch
from .concepts import load_concepts
from .describe import write_description
from .licences import write_licences
from .overview import draw_overview
from .read import read_samples

CAPTIONED = ("emoji", "furniture", "speech", "sounds", "motion", "exercise")
SOURCES = (*CAPTIONED, "digits", "watch")
VOCAB_SIZE = 4096
BUDGET = 34_500_000  # bytes in the whole folder


def train_tokenizer(folder: Path) -> None:
    """``tokenizer.json``: byte-pair encoding of the captions of all train splits."""
    texts = [
        caption
        for source in CAPTIONED
        for sample in read_samples(folder, source, "train")
        for caption in json.loads(sample["json"])["captions"]
    ]
    train_bpe(texts, VOCAB_SIZE).save(str(folder / "tokenizer.json"), pretty=False)


def build(cache: Path, folder: Path, only: Sequence[str], picture: Path | None) -> None:
    """Build the sources in ``only``, the tokenizer, SAMPLES.md and, if asked for, the picture.

    Args:
        cache: where the packages are kept.
        folder: where everything is written.
        only: names out of ``SOURCES``.
        picture: path of the overview, or None.

    Raises:
        RuntimeError: the folder is over its budget.
    """
    concepts, sets = load_concepts(cache, sounds.concept_names() | motion.concept_names())
    builders = {
        "emoji": lambda: emoji.build(folder, concepts, sets),
        "furniture": lambda: furniture.build(folder, cache),
        "speech": lambda: speech.build(folder, concepts, sets),
        "sounds": lambda: sounds.build(folder, cache, concepts, sets),
        "motion": lambda: motion.build(folder, cache, concepts, sets),
        "exercise": lambda: exercise.build(folder, cache),
        "digits": lambda: digits.build(folder, cache),
        "watch": lambda: watch.build(folder, cache),
    }
    for source in only:
        manifest = builders[source]()
        size = sum(shard["bytes"] for shard in manifest["shards"])
        count = sum(shard["samples"] for shard in manifest["shards"])
        print(f"{source}: {count} samples, {size / 1e6:.2f} MB", flush=True)
    if all((folder / f"{source}.json").exists() for source in SOURCES):
        train_tokenizer(folder)
        write_description(folder, SOURCES)
        write_licences(folder, cache)
        if picture is not None:
            draw_overview(folder, picture)
    total = sum(path.stat().st_size for path in folder.iterdir())
    print(f"all: {total / 1e6:.2f} MB")
    if total > BUDGET:
        raise RuntimeError(f"{folder} holds {total} bytes, the budget is {BUDGET}")
