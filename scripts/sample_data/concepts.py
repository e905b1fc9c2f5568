"""The emoji concepts: names, tags, families of near-copies, and the split that all sources obey."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from multimodal.core.hashing import stable_hash

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
STRICT = 100  # concepts of test_strict, by whole families
SIZES = {"test": 200, "val": 100}  # concepts drawn one by one
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
        family: relatives by name (a gender or colour apart) and near-copies in drawing.
        split: ``train``, ``val``, ``test`` or ``test_strict``.
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


def near_copies(drawings: Mapping[str, np.ndarray]) -> np.ndarray:
    """Which concepts are drawn alike: in two of the coloured styles, or the same in any style.

    Args:
        drawings: style -> ``[N, 64, 64, 3]`` uint8.

    Returns:
        ``[N, N]`` bool, symmetric, False on the diagonal.
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
    np.fill_diagonal(copies, False)
    return np.asarray(copies)


def join_families(keys: list[str], copies: np.ndarray) -> list[str]:
    """The family of every concept: its key's, joined with those of its near-copies."""
    parent = {key: key for key in keys}

    def root(key: str) -> str:
        while parent[key] != key:
            key = parent[key]
        return key

    for i, j in np.argwhere(np.triu(copies)):
        first, other = sorted((root(keys[i]), root(keys[j])))
        parent[other] = first
    return [root(key) for key in keys]


def assign_splits(
    names: Sequence[str], families: Sequence[str], copied: Sequence[bool], pinned: Collection[str]
) -> list[str]:
    """The split of every concept, in the order of hashes.

    Small families go whole to test_strict. Then concepts are drawn one by one for test and val: a
    relative of theirs may train, but nothing that is drawn like them.

    Args:
        names: of the concepts.
        families: of the concepts.
        copied: whether a concept has a near-copy.
        pinned: names that have to be in ``train``, with their whole families out of test_strict.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for place, family in enumerate(families):
        members[family].append(place)
    kept = {family for name, family in zip(names, families, strict=True) if name in pinned}
    splits = ["train"] * len(names)
    left = STRICT
    for family in sorted(members, key=lambda family: stable_hash("emoji split", family)):
        places = members[family]
        if family not in kept and len(places) <= min(left, LARGEST_HELD_OUT_FAMILY):
            left -= len(places)
            for place in places:
                splits[place] = "test_strict"
    free = [
        place
        for place in sorted(range(len(names)), key=lambda i: stable_hash("emoji draw", names[i]))
        if splits[place] == "train" and not copied[place] and names[place] not in pinned
    ]
    if left or len(free) < sum(SIZES.values()):
        raise RuntimeError(f"too few concepts for splits of {STRICT} and {SIZES}")
    for split, wanted in SIZES.items():
        for place in free[:wanted]:
            splits[place] = split
        free = free[wanted:]
    return splits


def load_concepts(cache: Path, pinned_names: Iterable[str]) -> tuple[list[Concept], dict[str, Any]]:
    """All concepts that every style draws, in the order of Unicode.

    Args:
        cache: folder of the fetched packages.
        pinned_names: concepts that other sources train on.

    Returns:
        The concepts, and style -> parsed ``icons.json``.
    """
    entries, meta = read_npm_json(EMOJIBASE, cache, "en/data.json", "meta/groups.json")
    sets, by_code = {}, {}
    for style, package in STYLES.items():
        sets[style], codes = read_npm_json(package, cache, "icons.json", "chars.json")
        by_code[style] = {code.upper().replace("-FE0F", ""): icon for code, icon in codes.items()}
    loaded = []
    for entry in sorted((e for e in entries if "group" in e), key=lambda e: e["order"]):
        code, slug = entry["hexcode"].replace("-FE0F", ""), _slug(entry["label"])
        icons = {style: by_code[style].get(code, slug) for style in STYLES}
        drawn = all(
            icon in sets[style]["icons"] or icon in sets[style].get("aliases", {})
            for style, icon in icons.items()
        )
        if drawn:
            loaded.append((code, entry, icons))
    names = [_plain(entry["label"]) for _, entry, _ in loaded]
    subgroups = [meta["subgroups"][str(entry["subgroup"])] for _, entry, _ in loaded]
    keys = [family_key(name, sub) for name, sub in zip(names, subgroups, strict=True)]
    drawings = {
        style: np.stack([np.asarray(draw_icon(sets[style], icons[style])) for *_, icons in loaded])
        for style in SEEN_STYLES
    }
    copies = near_copies(drawings)
    families = join_families(keys, copies)
    pinned = set(pinned_names)
    if pinned - set(names):
        raise ValueError(f"no emoji is named {sorted(pinned - set(names))}")
    splits = assign_splits(names, families, copies.any(1).tolist(), pinned)
    concepts = []
    for (code, entry, icons), name, subgroup, family, split in zip(
        loaded, names, subgroups, families, splits, strict=True
    ):
        group = meta["groups"][str(entry["group"])].replace("-", " & ")
        tags = tuple(_plain(tag) for tag in entry.get("tags", ()) if _plain(tag) != name)
        concepts.append(Concept(code, name, tags, group, subgroup, family, split, icons))
    return concepts, sets
