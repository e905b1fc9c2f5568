"""CLIP_benchmark's classifications: WebDataset tars, with classes and templates beside them."""

from __future__ import annotations

import json
from pathlib import Path

from multimodal.data.benchmarks.class_names import CLASSES
from multimodal.data.benchmarks.files import LayoutError, Samples, lines, needed
from multimodal.data.errors import BadSampleError
from multimodal.data.packing.contents import InShard
from multimodal.data.packing.items import Item, Refusal
from multimodal.data.shards.tar import Shard

HUB = "https://huggingface.co/datasets/clip-benchmark"
_NAMES = "classnames.txt"
_TEMPLATES = "zeroshot_classification_templates.txt"
_PICTURES = ("jpg", "jpeg", "png", "webp")


def samples(folder: Path) -> Samples:
    """``test/0.tar`` and on, ``test/nshards.txt``, ``classnames.txt`` and templates.

    A sample has a picture and a class's number, ``cls``; the metadata names the class, ``label``.

    Raises:
        LayoutError: if a file is missing, or there are fewer tars than ``nshards.txt`` says.
    """
    labels = labels_of(needed(folder, _NAMES))
    for path in _tars(folder):
        try:
            shard = Shard(path)
        except BadSampleError as error:
            yield Refusal(path.name, error.reason, str(error))
            continue
        for place, key in enumerate(shard.keys):
            yield _sample(path, shard, place, f"{path.stem}/{key}", labels)


def lists(folder: Path) -> dict[str, bytes]:
    """``classes.json``: each label's name, and the templates, as `class_names` and `prompts` read.

    Raises:
        LayoutError: if a file is missing or empty, or a template has no ``{c}``.
    """
    names = lines(needed(folder, _NAMES))
    labels = labels_of(folder / _NAMES)
    templates = [line.replace("{c}", "{}") for line in lines(needed(folder, _TEMPLATES))]
    wrong = [line for line in templates if line.count("{}") != 1]
    if wrong or not templates:
        raise LayoutError(
            f"{folder / _TEMPLATES}: expected a template with one {{c}} on each line, "
            f"got {wrong[0]!r}" if wrong else f"{folder / _TEMPLATES} is empty"
        )  # fmt: skip
    content = {"classes": dict(zip(labels, names, strict=True)), "prompts": templates}
    return {CLASSES: json.dumps(content, ensure_ascii=False, indent=1).encode() + b"\n"}


def labels_of(path: Path) -> list[str]:
    """A label for each class: its name, with its number where two classes share one.

    Raises:
        LayoutError: if there is no class.
    """
    names = lines(path)
    if not names:
        raise LayoutError(f"{path} is empty: expected the name of a class on each line")
    return [
        f"{name} ({number})" if names.count(name) > 1 else name for number, name in enumerate(names)
    ]


def _tars(folder: Path) -> list[Path]:
    test = needed(folder, "test")
    tars = sorted(test.glob("*.tar"), key=lambda path: (len(path.stem), path.stem))
    count = needed(test, "nshards.txt").read_text(encoding="utf-8").strip()
    if not count.isdecimal() or int(count) != len(tars):
        raise LayoutError(f"{test} has {len(tars)} tars, and nshards.txt says {count!r}")
    return tars


def _sample(path: Path, shard: Shard, place: int, name: str, labels: list[str]) -> Item | Refusal:
    fields = shard.fields(place)
    picture = next((field for field in fields if field in _PICTURES), None)
    if picture is None or "cls" not in fields:
        detail = f"{path.name}: expected a picture and cls, got {', '.join(fields)}"
        return Refusal(name, "no_member", detail)
    try:
        shard.check(place)
        text = shard.read(place, "cls").decode("utf-8", "replace").strip()
    except BadSampleError as error:
        return Refusal(name, error.reason, f"{path.name}: {error.detail}")
    if not text.isdecimal() or int(text) >= len(labels):
        detail = f"{path.name}: cls is {text[:40]!r}, expected a number below {len(labels)}"
        return Refusal(name, "no_class", detail)
    content = InShard(path, place, picture, shard.size(place, picture))
    return Item(name, {"image.jpg": content}, {"label": labels[int(text)]}, "test")
