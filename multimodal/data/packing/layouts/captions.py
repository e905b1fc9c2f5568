"""Caption sets as they are published: COCO's JSON, Karpathy's splits, Flickr30k's token file."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from multimodal.core.strict_json import excerpt
from multimodal.data.packing.items import Item, Refusal, Samples, Say
from multimodal.data.packing.keys import printable
from multimodal.data.packing.tables.encoding import find_encoding, open_bytes
from multimodal.data.packing.tables.reading import Reading
from multimodal.data.packing.tables.roles import find_root
from multimodal.data.packing.tables.samples import RefusedRow, member_at
from multimodal.data.packing.tables.splits import split_named
from multimodal.data.packing.tables.values import is_nothing

CAPTIONS = "captions"  # the key that holds a picture's captions
LABELS = "labels"  # the key that holds the names of its objects
_TOKEN = re.compile(r"([^\t#]+\.\w{2,5})#(\d+)[ \t]+(.*)")


class _Picture(NamedTuple):
    """A picture of a caption set.

    Attributes:
        where: its entry, for messages.
        path: of its file.
        captions: as they are given.
        labels: names of its objects.
        split: that the set says it belongs to.
        url: where it can be fetched; empty if nowhere.
    """

    where: str
    path: str
    captions: list[Any]
    labels: list[str]
    split: str | None
    url: str


def is_coco(content: Any) -> bool:
    """Whether a JSON document is one of COCO's."""
    return isinstance(content, dict) and all(
        isinstance(content.get(key), list) for key in ("images", "annotations")
    )


def is_karpathy(content: Any) -> bool:
    """Whether a JSON document holds splits as Karpathy's do, which name their ``dataset``."""
    images = content.get("images") if isinstance(content, dict) else None
    if images == []:
        return "dataset" in content
    return isinstance(images, list) and any(
        isinstance(image, dict) and "sentences" in image for image in images[:10]
    )


def coco(path: Path, content: dict[str, Any], reading: Reading, say: Say) -> Samples:
    """A sample for each image of COCO's JSON, with its captions, or else its objects' names.

    Raises:
        ValueError: if an entry is not as COCO's; names it.
    """
    names = {
        _get(path, "category", category, "id"): str(category.get("name"))
        for category in content.get("categories") or []
    }
    captions: dict[Any, list[Any]] = defaultdict(list)
    labels: dict[Any, set[str]] = defaultdict(set)
    for annotation in content["annotations"]:
        image = _get(path, "annotation", annotation, "image_id")
        if "caption" in annotation:
            captions[image].append(annotation["caption"])
        elif annotation.get("category_id") in names:
            labels[image].add(names[annotation["category_id"]])
    pictures = []
    for image in content["images"]:
        number = _get(path, "image", image, "id")
        pictures.append(_Picture(
            f"image {number}", str(_get(path, "image", image, "file_name")), captions[number],
            sorted(labels[number]), None, str(image.get("coco_url") or ""),
        ))  # fmt: skip
    known = {_get(path, "image", image, "id") for image in content["images"]}
    for image in sorted(map(str, captions.keys() - known)):
        yield Refusal(
            f"image {image}", "no_file", f"{path.name}: captions of an image that is not listed"
        )
    say(f"{path.name}: COCO's JSON, {len(pictures)} images")
    yield from _samples(path, pictures, reading, say)


def karpathy(path: Path, content: dict[str, Any], reading: Reading, say: Say) -> Samples:
    """A sample for each image of Karpathy's splits, with its captions and its split.

    Raises:
        ValueError: if an entry is not as Karpathy's; names it.
    """
    pictures = []
    for number, image in enumerate(content["images"]):
        name = str(_get(path, f"image {number},", image, "filename"))
        folder = image.get("filepath")
        sentences = image.get("sentences") or []
        captions = [each.get("raw") if isinstance(each, dict) else each for each in sentences]
        split = split_named(str(image.get("split", "")))
        file = f"{folder}/{name}" if folder else name
        pictures.append(_Picture(f"image {number}", file, captions, [], split, ""))
    say(f"{path.name}: Karpathy's splits, {len(pictures)} images (--split changes the splits)")
    yield from _samples(path, pictures, reading, say)


def is_token_file(path: Path) -> bool:
    """Whether a file has lines of ``image.jpg#0`` and a caption, as Flickr30k's token file."""
    with open_bytes(path) as file:
        line = file.readline(1 << 16).decode("utf-8-sig", "replace")
    return _TOKEN.fullmatch(line.strip()) is not None


def token_file(path: Path, reading: Reading, say: Say) -> Samples:
    """A sample for each image of a token file.

    Raises:
        ValueError: if a line is not as the others; names it.
    """
    encoding = find_encoding(path, reading.text.encoding)
    captions: dict[str, list[str]] = defaultdict(list)
    with open_bytes(path) as file:
        lines = file.read().decode(encoding.name).splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if (match := _TOKEN.fullmatch(line.strip())) is None:
            detail = f"expected IMAGE#NUMBER, a tab and a caption, got {excerpt(line)}"
            if not reading.skip_broken:
                raise ValueError(f"{path}, line {number}: {detail}; --skip-broken leaves it out")
            yield Refusal(f"line {number}", "broken_row", f"{path.name}, line {number}: {detail}")
            continue
        captions[match[1]].append(match[3])
    pictures = [_Picture(n, n, texts, [], None, "") for n, texts in captions.items()]
    say(f"{path.name}: captions by image and number, {len(pictures)} images")
    yield from _samples(path, pictures, reading, say)


def _get(path: Path, what: str, entry: Any, key: str) -> Any:
    if not isinstance(entry, dict) or isinstance(entry.get(key), dict | list | None):
        raise ValueError(f"{path}: {what} without {key!r}: {excerpt(entry)}")
    return entry[key]


def _samples(
    path: Path, pictures: Sequence[_Picture], reading: Reading, say: Say
) -> Iterator[Item | Refusal]:
    if not pictures:
        raise ValueError(f"{path} lists no images")
    root = reading.root or find_root([p.path for p in pictures], path.parent, beside=True)
    web = reading.root is None and not any((root / p.path).is_file() for p in pictures)
    web = web and any(picture.url for picture in pictures)
    say("the pictures are fetched from their URLs" if web else f"the pictures are read in {root}")
    for picture in pictures:
        yield _sample_or_refusal(path, picture, root, web)


def _sample_or_refusal(path: Path, picture: _Picture, root: Path, web: bool) -> Item | Refusal:
    try:
        return _sample(picture, root, web)
    except RefusedRow as error:
        detail = f"{path.name}, {picture.where}: {error.detail}"
        return Refusal(picture.path, error.reason, detail)


def _sample(picture: _Picture, root: Path, web: bool) -> Item:
    texts = [text for text in picture.captions if not is_nothing(text)]
    if not texts and not picture.labels:
        raise RefusedRow("no_text", "it has no captions")
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise RefusedRow("no_text", f"a caption is not a text: {excerpt(wrong[0])}")
    member, content = member_at("", picture.url if web else picture.path, root)
    metadata: dict[str, Any] = {}
    if texts:
        metadata[CAPTIONS] = [printable(text.strip()) for text in texts]
    if picture.labels:
        metadata[LABELS] = picture.labels
    name = picture.path.rpartition(".")[0] or picture.path
    return Item(name, {member: content}, metadata, picture.split, (CAPTIONS,) if texts else ())
