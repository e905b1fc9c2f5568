"""The emoji concepts: names, tags, families of near-copies, and the split that all sources obey."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from multimodal.hashing import stable_hash

from .fetch import EMOJIBASE, FLUENT, FLUENT_HC, NOTO, OPENMOJI, TWEMOJI, read_npm_json
from .images import draw_icon

STYLES = {
    "noto": NOTO,
    "twemoji": TWEMOJI,
    "fluent": FLUENT,
    "fluent_hc": FLUENT_HC,
    "openmoji": OPENMOJI,
}
SEEN_STYLES = ("noto", "twemoji", "fluent", "fluent_hc")
COLORED_STYLES = ("noto", "twemoji", "fluent")
SIZES = {"test": 200, "val": 100}
LARGEST_HELD_OUT_FAMILY = 4
# Root mean square differences of colours in [0, 1] at 16x16 pixels.
NEAR_DRAWING = 0.07  # in two of the coloured styles: a near-copy
SAME_DRAWING = 0.02  # in any style: a copy

# Whole subgroups of Unicode that are one drawing with other marks in it.
ONE_DRAWING = {
    "person",
    "keycap",
    "alphanum",
    "arrow",
    "zodiac",
    "geometric",
    "av-symbol",
    "math",
    "punctuation",
    "monkey-face",
    "cat-face",
}
FAMILY_PATTERNS = {
    r"o'clock|-thirty": "clock face",
    r"\bmoon\b": "moon",
    r"\bbanknote\b": "banknote",
    r"\bglobe\b": "globe",
    r"\bmailbox\b": "mailbox",
    r"\bspeaker\b": "speaker",
    r"\bmedal\b": "medal",
    r"\bclaus\b": "claus",
    r"\bmer(maid|man|person)\b": "merperson",
    r"\bprince|with crown": "prince",
    r"\bpointing\b": "pointing hand",
    r"^sun\b": "sun",
    r"^cloud\b": "cloud",
    r"\bumbrella\b": "umbrella",
    r"\bchick\b": "chick",
    r"\bchart\b": "chart",
    r"\block(ed)?\b|^unlocked": "lock",
    r"\b(hand|fist)s?\b": "hand",
    r"^grinning .*face|^grinning face|^beaming face": "grinning face",
}
GENDER = re.compile(r"\b(man|woman|person|men|women|people|older|old|boy|girl)\b")
COLOR = re.compile(
    r"\b(light blue|black|white|blue|green|orange|red|yellow|brown|purple|grey|pink)\b"
)


@dataclass(frozen=True)
class Concept:
    """One emoji, however it is drawn.

    Attributes:
        concept: its code points, such as ``1F3C3-200D-2640`` (variation selectors left out).
        name: English name.
        tags: English key words, the order of the source.
        group: such as ``animals & nature``.
        subgroup: such as ``animal-bird``.
        family: concepts of one family are near-copies and lie in one split.
        split: ``train``, ``val`` or ``test``.
        icons: style -> name of the icon in that style's set.
    """

    concept: str
    name: str
    tags: tuple[str, ...]
    group: str
    subgroup: str
    family: str
    split: str
    icons: Mapping[str, str]


def _plain(text: str) -> str:
    return text.translate(str.maketrans({"’": "'", "“": '"', "”": '"'}))


def _slug(name: str) -> str:
    text = unicodedata.normalize("NFKD", re.sub("[’'“”\"]", "", name))
    return re.sub(r"[^a-z0-9]+", "-", text.encode("ascii", "ignore").decode().lower()).strip("-")


def family_key(name: str, subgroup: str) -> str:
    """The family that the name alone gives: gender, colour, direction and number dropped."""
    text = name.lower()
    if subgroup in ONE_DRAWING:
        return f"any {subgroup}"
    for pattern, family in FAMILY_PATTERNS.items():
        if re.search(pattern, text):
            return family
    text = re.sub(r": facing right$| face$|^oncoming |\b(left|right)\b", "", text)
    text = COLOR.sub("", GENDER.sub("", text))
    return re.sub(r"s\b", "", re.sub(r"\s+", " ", text)).strip(" :") or name


def _join_families(keys: list[str], drawings: Mapping[str, np.ndarray]) -> list[str]:
    """Join the families of concepts that are near-copies in two coloured styles, or copies in one.

    Args:
        keys: the family of every concept.
        drawings: style -> ``[N, 64, 64, 3]`` uint8.
    """
    distances = {}
    for style, images in drawings.items():
        count = len(images)
        small = images.reshape(count, 16, 4, 16, 4, 3).mean((2, 4)).reshape(count, -1) / 255.0
        square = (small**2).sum(1)
        gaps = square[:, None] + square[None] - 2.0 * small @ small.T
        distances[style] = np.sqrt(np.maximum(gaps, 0.0) / small.shape[1])
    copies = np.min([*distances.values()], axis=0) < SAME_DRAWING
    copies |= np.sort([distances[style] for style in COLORED_STYLES], axis=0)[1] < NEAR_DRAWING
    parent = {key: key for key in keys}

    def root(key: str) -> str:
        while parent[key] != key:
            key = parent[key]
        return key

    for i, j in np.argwhere(np.triu(copies, 1)):
        first, other = sorted((root(keys[i]), root(keys[j])))
        parent[other] = first
    return [root(key) for key in keys]


def assign_splits(families: Iterable[str], pinned: set[str]) -> dict[str, str]:
    """Family -> split. Families come in the order of a hash; pinned and large ones train.

    Args:
        families: the family of every concept (one entry per concept).
        pinned: families that have to be in ``train``.
    """
    counts: dict[str, int] = defaultdict(int)
    for family in families:
        counts[family] += 1
    order = sorted(counts, key=lambda family: stable_hash("emoji split", family))
    splits = dict.fromkeys(order, "train")
    for split, wanted in SIZES.items():
        left = wanted
        for family in order:
            free = splits[family] == "train" and family not in pinned
            if free and counts[family] <= min(left, LARGEST_HELD_OUT_FAMILY):
                splits[family] = split
                left -= counts[family]
        if left:
            raise RuntimeError(f"{split} is {left} concepts short of {wanted}")
    return splits


def load_concepts(cache: Path, pinned_names: Iterable[str]) -> tuple[list[Concept], dict[str, Any]]:
    """All concepts that every style draws, in the order of Unicode.

    Args:
        cache: folder of the fetched packages.
        pinned_names: concepts (with their families) that other sources train on.

    Returns:
        The concepts, and style -> parsed ``icons.json``.
    """
    entries, meta = read_npm_json(EMOJIBASE, cache, "en/data.json", "meta/groups.json")
    sets, by_code = {}, {}
    for style, package in STYLES.items():
        sets[style], codes = read_npm_json(package, cache, "icons.json", "chars.json")
        by_code[style] = {code.upper().replace("-FE0F", ""): icon for code, icon in codes.items()}
    found = []
    for entry in sorted((e for e in entries if "group" in e), key=lambda e: e["order"]):
        code, slug = entry["hexcode"].replace("-FE0F", ""), _slug(entry["label"])
        icons = {style: by_code[style].get(code, slug) for style in STYLES}
        drawn = all(
            icon in sets[style]["icons"] or icon in sets[style].get("aliases", {})
            for style, icon in icons.items()
        )
        if drawn:
            found.append((code, entry, icons))
    names = [_plain(entry["label"]) for _, entry, _ in found]
    subgroups = [meta["subgroups"][str(entry["subgroup"])] for _, entry, _ in found]
    keys = [family_key(name, sub) for name, sub in zip(names, subgroups, strict=True)]
    drawings = {
        style: np.stack([np.asarray(draw_icon(sets[style], icons[style])) for *_, icons in found])
        for style in SEEN_STYLES
    }
    families = _join_families(keys, drawings)
    unknown = set(pinned_names) - set(names)
    if unknown:
        raise ValueError(f"no emoji is named {sorted(unknown)}")
    pinned = {family for name, family in zip(names, families, strict=True) if name in pinned_names}
    splits = assign_splits(families, pinned)
    concepts = []
    for (code, entry, icons), name, subgroup, family in zip(
        found, names, subgroups, families, strict=True
    ):
        group = meta["groups"][str(entry["group"])].replace("-", " & ")
        tags = tuple(_plain(tag) for tag in entry.get("tags", ()) if _plain(tag) != name)
        concepts.append(Concept(code, name, tags, group, subgroup, family, splits[family], icons))
    return concepts, sets
