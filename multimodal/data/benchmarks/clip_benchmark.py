"""CLIP_benchmark's sets: WebDataset tars, with classes and templates beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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


def is_exported(folder: Path) -> bool:
    """Whether a folder holds a set as CLIP_benchmark writes it."""
    return (folder / "test" / "nshards.txt").is_file()


def samples(folder: Path) -> Samples:
    """``test/0.tar`` and on, ``test/nshards.txt``, ``classnames.txt`` and templates.

    A sample has a picture and a class's number, ``cls``; the metadata names the class, ``label``.

    Raises:
        LayoutError: if a file is missing, or there are fewer tars than ``nshards.txt`` says.
    """
    yield from numbered(folder, labels_of(needed(folder, _NAMES)))


def numbered(folder: Path, labels: Sequence[str]) -> Samples:
    """The same, with a label for each number.

    Raises:
        LayoutError: as `samples`.
    """
    yield from _read(folder, "cls", lambda text: _labelled(text, labels))


def captioned(folder: Path, most: int) -> Samples:
    """Pictures with captions: at most so many, one on each line of ``txt``.

    Raises:
        LayoutError: as `samples`.
    """
    yield from _read(folder, "txt", lambda text: _captions(text, most))


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


def _read(folder: Path, field: str, metadata: Callable[[str], dict[str, Any]]) -> Samples:
    for path in _tars(folder):
        try:
            shard = Shard(path)
        except BadSampleError as error:
            yield Refusal(path.name, error.reason, str(error))
            continue
        for place, key in enumerate(shard.keys):
            name = f"{path.stem}/{key}"
            try:
                yield _item(path, shard, place, name, field, metadata)
            except BadSampleError as error:
                yield Refusal(name, error.reason, f"{path.name}: {error.detail}")


def _item(
    path: Path,
    shard: Shard,
    place: int,
    name: str,
    field: str,
    metadata: Callable[[str], dict[str, Any]],
) -> Item:
    fields = shard.fields(place)
    picture = next((each for each in fields if each in _PICTURES), None)
    if picture is None or field not in fields:
        detail = f"expected a picture and {field}, got {', '.join(fields)}"
        raise BadSampleError("no_member", detail)
    shard.check(place)
    said = metadata(shard.read(place, field).decode("utf-8", "replace"))
    content = InShard(path, place, picture, shard.size(place, picture))
    texts = tuple(key for key in said if key == "captions")
    return Item(name, {"image.jpg": content}, said, "test", texts)


def _labelled(text: str, labels: Sequence[str]) -> dict[str, Any]:
    number = text.strip()
    if not number.isdecimal() or int(number) >= len(labels):
        detail = f"cls is {number[:40]!r}, expected a number below {len(labels)}"
        raise BadSampleError("no_class", detail)
    return {"label": labels[int(number)]}


def _captions(text: str, most: int) -> dict[str, Any]:
    captions = [line.strip() for line in text.split("\n") if line.strip()]
    if not captions:
        raise BadSampleError("no_caption", "txt holds no caption")
    return {"captions": captions[:most]}
