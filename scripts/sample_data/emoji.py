"""Image and text: the same emoji drawn in five styles, with their names and tags."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .concepts import SEEN_STYLES, Concept
from .images import compact_webp, draw_icon
from .shards import BLOCK, Description, Licence, Sample, write_source

STYLE_LICENCES = {
    "noto": Licence(
        "noto.webp, from @iconify-json/noto 1.2.9",
        "Apache-2.0",
        "Noto Emoji, Google Inc",
        "https://github.com/googlefonts/noto-emoji",
    ),
    "twemoji": Licence(
        "twemoji.webp, from @iconify-json/twemoji 1.2.5",
        "CC-BY-4.0",
        "Twemoji, Twitter and other contributors",
        "https://github.com/jdecked/twemoji",
    ),
    "fluent": Licence(
        "fluent.webp, from @iconify-json/fluent-emoji-flat 1.2.6",
        "MIT",
        "Fluent Emoji, Copyright (c) Microsoft Corporation",
        "https://github.com/microsoft/fluentui-emoji",
    ),
    "fluent_hc": Licence(
        "fluent_hc.webp, from @iconify-json/fluent-emoji-high-contrast 1.2.6",
        "MIT",
        "Fluent Emoji, Copyright (c) Microsoft Corporation",
        "https://github.com/microsoft/fluentui-emoji",
    ),
    "openmoji": Licence(
        "openmoji.webp, from @iconify-json/openmoji 1.2.29",
        "CC-BY-SA-4.0",
        "OpenMoji, the open-source emoji and icon project",
        "https://openmoji.org",
    ),
}
NAME_LICENCE = Licence(
    "names, tags and groups, from emojibase-data 17.0.0",
    "MIT",
    "Emojibase, Copyright (c) Miles Johnson",
    "https://github.com/milesj/emojibase",
)
TAGS_PER_CAPTION = 3
UNSEEN_STYLE = ("test", "test_strict")  # the splits that are drawn in openmoji too


def captions(name: str, tags: Sequence[str]) -> list[str]:
    """The name, then the name with three tags at a time."""
    groups = [tags[i : i + TAGS_PER_CAPTION] for i in range(0, len(tags), TAGS_PER_CAPTION)]
    return [name, *(", ".join([name, *group]) for group in groups)]


def metadata(concept: Concept) -> dict[str, Any]:
    """The JSON of one concept, with as many tags as fit into one block of the tar."""
    for count in range(len(concept.tags), -1, -1):
        tags = list(concept.tags[:count])
        values = {
            "name": concept.name,
            "captions": captions(concept.name, tags),
            "tags": tags,
            "group": concept.group,
            "subgroup": concept.subgroup,
            "concept": concept.concept,
            "family": concept.family,
        }
        size = len(json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode())
        if size <= BLOCK:
            return values
    raise ValueError(f"the metadata of {concept.name!r} take {size} bytes without any tags")


def build(folder: Path, concepts: Sequence[Concept], sets: dict[str, Any]) -> dict[str, Any]:
    """Write the source ``emoji``; returns its manifest."""
    splits: dict[str, list[Sample]] = defaultdict(list)
    for concept in concepts:
        styles = [*SEEN_STYLES, *(["openmoji"] if concept.split in UNSEEN_STYLE else [])]
        members = {
            f"{style}.webp": compact_webp(draw_icon(sets[style], concept.icons[style]))
            for style in styles
        }
        splits[concept.split].append(Sample(concept.concept.lower(), members, metadata(concept)))
    about = Description(
        name="emoji",
        description=(
            "Emoji in four styles for training and a fifth, openmoji, for the test splits only; "
            "64x64 RGB on white, lossless WebP of at most a few dozen colours. The concepts of "
            "val and test do not train, nor anything drawn like them; those of test_strict do not "
            "train with their whole families."
        ),
        origin="drawn from the SVG icons of npm packages of Iconify; names from emojibase-data",
        licences=[*STYLE_LICENCES.values(), NAME_LICENCE],
        fields={
            **{f"{style}.webp": {"kind": "image"} for style in SEEN_STYLES},
            "openmoji.webp": {"kind": "image", "splits": list(UNSEEN_STYLE)},
            "json": {
                "kind": "json",
                "keys": [
                    "name",
                    "captions",
                    "tags",
                    "group",
                    "subgroup",
                    "concept",
                    "family",
                ],
            },
        },
    )
    order = ("train", "val", "test", "test_strict")
    return write_source(folder, about, {split: splits[split] for split in order})
