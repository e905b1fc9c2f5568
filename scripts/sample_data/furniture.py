"""Image and depth: icons of furniture and the depth of the same 3D models in the same view."""

from __future__ import annotations

import io
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from multimodal.core.hashing import stable_hash

from .fetch import FURNITURE, unpack_deb
from .images import SIZE, compact_webp
from .render import read_obj
from .shards import Description, Licence, Sample, write_source
from .views import depth_png, draw_depth, find_view, outline_box, scale_model

CATALOGS = {
    "Scopia": "CC-BY-3.0",
    "KatorLegaz": "CC-BY-3.0-US",
    "Reallusion": "CC-BY-3.0-US",
    "BlendSwap-CC-BY": "CC-BY-3.0",
    "BlendSwap-CC-0": "CC0-1.0",
}
SOURCES = "https://www.sweethome3d.com/importModels.jsp"
LICENCES = [
    Licence(
        "models and icons of the Scopia catalog",
        "CC-BY-3.0",
        "Scopia Visual Interfaces Systems, s.l. and Emmanuel Puybaret / eTeks",
        SOURCES,
    ),
    Licence(
        "models and icons of the Kator Legaz catalog",
        "CC-BY-3.0-US",
        "Andrew Kator and Jennifer Legaz",
        SOURCES,
    ),
    Licence(
        "models and icons of the Reallusion catalog",
        "CC-BY-3.0-US",
        "Reallusion",
        SOURCES,
    ),
    Licence(
        "models and icons of the Blend Swap CC-BY catalog",
        "CC-BY-3.0",
        "the contributors of Blend Swap, each named as `creator` in the sample's JSON",
        SOURCES,
    ),
    Licence(
        "models and icons of the Blend Swap CC-0 catalog",
        "CC0-1.0",
        "the contributors of Blend Swap, each named as `creator` in the sample's JSON",
        SOURCES,
    ),
]
SIZES = {"test": 120, "val": 60}  # models
LOOSE = 165  # models whose name is new but whose head noun trains
LARGEST_HELD_OUT_NOUN = 8
WORST_OVERLAP = 0.4  # below it, icon and model do not show one view
NOT_A_HEAD = {"ahead", "bz", "cc", "hôi", "left", "panes", "right", "seats", "small", "straight"}
NOT_A_HEAD |= {"turn", "zones"}
NO_PLURAL = {"clothes", "fries", "pliers", "scissors", "tennis", "trousers", "shelves"}
ICON_BLOCKS = 4


@dataclass(frozen=True)
class Model:
    """One entry of a catalog."""

    key: str
    name: str
    head_noun: str
    tags: tuple[str, ...]
    category: str
    creator: str
    licence: str
    size_mm: tuple[float, float, float]
    rotation: tuple[float, ...]
    icon: bytes
    obj: bytes


def _last_word(name: str) -> str:
    phrase = re.split(r" (?:with|on|of|and)\b", name)[0]
    words = [w for w in re.findall(r"[^\W\d_]{2,}", phrase) if w not in NOT_A_HEAD]
    return words[-1] if words else name


def singular(word: str) -> str:
    """A noun without its plural ending, roughly; equal nouns stay equal."""
    if word in NO_PLURAL or re.search(r"[sui]s$", word) or len(word) < 4:
        return word
    return re.sub(r"(?<=ss|sh|ch)es$|s$", "", word)


def head_nouns(names: Iterable[str]) -> dict[str, str]:
    """Name -> head noun: its last word, singular; of compounds the ending (armchair: chair).

    Args:
        names: all names, since a compound is known by another name's noun.
    """
    last = {name: singular(_last_word(name)) for name in names}
    nouns = sorted(set(last.values()), key=lambda noun: (len(noun), noun))

    def ending(noun: str) -> str:
        return next((n for n in nouns if len(n) > 3 and noun.endswith(n)), noun)

    return {name: ending(noun) for name, noun in last.items()}


def _properties(data: bytes) -> dict[str, str]:
    lines = data.decode("latin-1").splitlines()
    pairs = [line.split("=", 1) for line in lines if "=" in line and not line.startswith("#")]
    return {key: value.encode("latin-1").decode("unicode_escape").strip() for key, value in pairs}


def _entries(cache: Path) -> Iterator[tuple[str, dict[str, str], zipfile.ZipFile]]:
    root = unpack_deb(FURNITURE, cache) / "usr/share/sweethome3d/furniture"
    for catalog in CATALOGS:
        with zipfile.ZipFile(root / f"{catalog}.sh3f") as archive:
            properties = _properties(archive.read("PluginFurnitureCatalog.properties"))
            index = 1
            while f"name#{index}" in properties:
                suffix = f"#{index}"
                entry = {
                    key.removesuffix(suffix): value
                    for key, value in properties.items()
                    if key.endswith(suffix)
                }
                yield catalog, entry, archive
                index += 1


def load_models(cache: Path) -> list[Model]:
    """All models of all catalogs."""
    models = []
    for catalog, entry, archive in _entries(cache):
        name = re.sub(r"\s+\d+$", "", entry["name"].lower())
        tags = [tag.strip().lower() for tag in entry["tags"].split(",")]
        rotation = entry.get("modelRotation", "1 0 0 0 1 0 0 0 1").split()
        models.append(
            (
                name,
                {
                    "key": re.sub(
                        r"[^a-z0-9]+", "-", f"{catalog}-{Path(entry['model']).stem}".lower()
                    ),
                    "tags": tuple(tag for tag in tags if tag not in ("", "blend swap", name)),
                    "category": entry["category"].lower(),
                    "creator": entry["creator"],
                    "licence": CATALOGS[catalog],
                    "size_mm": tuple(
                        float(entry[side]) * 10 for side in ("width", "height", "depth")
                    ),
                    "rotation": tuple(float(number) for number in rotation),
                    "icon": archive.read(entry["icon"].lstrip("/")),
                    "obj": archive.read(entry["model"].lstrip("/")),
                },
            )
        )
    nouns = head_nouns({name for name, _ in models})
    return [Model(name=name, head_noun=nouns[name], **rest) for name, rest in models]


def assign_splits(models: Iterable[Model]) -> dict[str, str]:
    """Name -> split: head nouns go whole to val and test, then names of train to test_loose."""
    models = list(models)
    nouns = Counter(model.head_noun for model in models)
    order = sorted(nouns, key=lambda noun: stable_hash("furniture split", noun))
    noun_split = dict.fromkeys(order, "train")
    for split, wanted in SIZES.items():
        left = wanted
        for noun in order:
            if noun_split[noun] == "train" and nouns[noun] <= min(left, LARGEST_HELD_OUT_NOUN):
                noun_split[noun] = split
                left -= nouns[noun]
    splits = {model.name: noun_split[model.head_noun] for model in models}
    names = Counter(model.name for model in models)
    names_of: dict[str, set[str]] = defaultdict(set)
    for model in models:
        names_of[model.head_noun].add(model.name)
    left = LOOSE
    for name in sorted(names, key=lambda name: stable_hash("furniture loose", name)):
        (noun,) = {model.head_noun for model in models if model.name == name}
        training = [other for other in names_of[noun] if splits[other] == "train"]
        if splits[name] == "train" and len(training) > 2 and names[name] <= min(left, 2):
            splits[name] = "test_loose"
            left -= names[name]
    return splits


def make_sample(model: Model) -> tuple[Sample, float]:
    """The sample of one model, and how well its two pictures overlap."""
    with Image.open(io.BytesIO(model.icon)) as file:
        icon = file.convert("RGBA")
    alpha = np.asarray(icon)[:, :, 3]
    mesh = scale_model(
        read_obj(model.obj), np.reshape(model.rotation, (3, 3)), np.array(model.size_mm)
    )
    view = find_view(mesh, alpha)
    box = tuple(edge * SIZE / icon.width for edge in outline_box(alpha))
    white = Image.new("RGBA", icon.size, "white")
    white.alpha_composite(icon)
    picture = white.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX)
    metadata = {
        "name": model.name,
        "captions": [
            model.name,
            f"{model.name}, {model.category}",
            *([", ".join([model.name, *model.tags])] if model.tags else []),
        ],
        "concept": model.name,
        "head_noun": model.head_noun,
        "category": model.category,
        "tags": list(model.tags),
        "creator": model.creator,
        "licence": model.licence,
        "view": [view.yaw, view.pitch],
    }
    members = {
        "icon.webp": compact_webp(picture, ICON_BLOCKS),
        "depth.png": depth_png(draw_depth(mesh, view, box)),
    }
    return Sample(model.key, members, metadata), view.overlap


def build(folder: Path, cache: Path) -> dict[str, Any]:
    """Write the source ``furniture``; returns its manifest."""
    models = load_models(cache)
    made = [(model, *make_sample(model)) for model in models]
    kept = [(model, sample) for model, sample, overlap in made if overlap >= WORST_OVERLAP]
    names = assign_splits(model for model, _ in kept)
    splits: dict[str, list[Sample]] = defaultdict(list)
    for model, sample in kept:
        splits[names[model.name]].append(sample)
    about = Description(
        name="furniture",
        description=(
            "Icons of furniture and other things, 64x64 RGB on white, and the depth of the same "
            "models, rendered in the icon's view: 16-bit millimetres along the optical axis, 0 "
            "where there is no surface. Head nouns are disjoint between train, val and test; "
            "test_loose has new names whose head nouns train. "
            f"Of {len(made)} models {len(made) - len(kept)} were left out, because no view of "
            f"theirs overlaps the icon's outline by {WORST_OVERLAP}."
        ),
        origin="Debian sweethome3d-furniture 1.8-1; the depth is rendered, not measured",
        licences=LICENCES,
        fields={
            "icon.webp": {"kind": "image"},
            "depth.png": {"kind": "depth", "unit": "mm"},
            "json": {
                "kind": "json",
                "keys": [
                    "name",
                    "captions",
                    "concept",
                    "head_noun",
                    "category",
                    "tags",
                    "creator",
                    "licence",
                    "view",
                ],
            },
        },
    )
    order = ("train", "val", "test", "test_loose")
    return write_source(folder, about, {split: splits[split] for split in order})
