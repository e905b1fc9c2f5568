"""Benchmarks of pictures: ImageNet and its variants, captions, and sentences of the same words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from multimodal.data.benchmarks import clip_benchmark
from multimodal.data.benchmarks.class_names import class_names, synsets
from multimodal.data.benchmarks.files import (
    LayoutError,
    Samples,
    by_stem,
    document,
    needed,
    sample,
    table,
)
from multimodal.data.shards.formats import extension_of

_PICTURES = ("jpg", "jpeg", "png", "webp")
_KINDS = ("add", "replace", "swap")  # of SugarCrepe's sentences
_CAPTIONS = 5  # of a picture: Karpathy's test of COCO takes the first five of up to seven


def imagenet(folder: Path) -> Samples:
    """A folder for each class, named by its WordNet id or number; or Kaggle's flat validation set.

    The first is how the validation set, Sketch, A and R come, the second V2, the third
    ``LOC_val_solution.csv`` beside ``ILSVRC/Data/CLS-LOC/val``. Or as CLIP_benchmark writes it.
    """
    every = synsets()
    if clip_benchmark.is_exported(folder):
        yield from clip_benchmark.numbered(folder, every)
        return
    solution = folder / "LOC_val_solution.csv"
    if solution.is_file():
        pictures = needed(folder, "ILSVRC/Data/CLS-LOC/val", "val")
        for row in table(solution):
            name, label = row["ImageId"], row["PredictionString"].split()[0]
            yield sample(name, "image.jpg", pictures / f"{name}.JPEG", {"label": label})
        return
    known = set(every)
    classes = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    if not classes:
        raise LayoutError(f"{folder} has no folders of classes, and no LOC_val_solution.csv")
    for path in classes:
        number = int(path.name) if path.name.isdecimal() else -1
        label = every[number] if 0 <= number < len(every) else path.name
        if label not in known:
            raise LayoutError(f"{path} is neither a WordNet id of ImageNet-1k nor a class's number")
        for file in sorted(path.iterdir()):
            if extension_of(file.name) in _PICTURES:
                yield sample(f"{label}/{file.stem}", "image.jpg", file, {"label": label})


def imagenet_a(folder: Path) -> Samples:
    """As `imagenet`, of 200 classes, which CLIP_benchmark numbers by themselves."""
    yield from _of_classes(folder, "imagenet_a")


def imagenet_r(folder: Path) -> Samples:
    """As `imagenet_a`, of 200 other classes."""
    yield from _of_classes(folder, "imagenet_r")


def _of_classes(folder: Path, name: str) -> Samples:
    if clip_benchmark.is_exported(folder):
        yield from clip_benchmark.numbered(folder, list(class_names(name)))
    else:
        yield from imagenet(folder)


def coco(folder: Path) -> Samples:
    """``dataset_coco.json`` (Karpathy's splits) beside ``val2014/``: the 5,000 of its test.

    Or as CLIP_benchmark writes it.
    """
    yield from _karpathy(folder, "dataset_coco.json", [""])


def flickr30k(folder: Path) -> Samples:
    """``dataset_flickr30k.json`` beside ``flickr30k-images/``: the 1,000 of its test.

    Or as CLIP_benchmark writes it.
    """
    yield from _karpathy(folder, "dataset_flickr30k.json", ["flickr30k-images", "images", ""])


def _karpathy(folder: Path, name: str, roots: list[str]) -> Samples:
    if clip_benchmark.is_exported(folder):
        yield from clip_benchmark.captioned(folder, _CAPTIONS)
        return
    for image in document(needed(folder, name))["images"]:
        if image["split"] != "test":
            continue
        file = "/".join(part for part in (image.get("filepath"), image["filename"]) if part)
        root = next((root for root in roots if (folder / root / file).is_file()), roots[0])
        captions = [str(sentence["raw"]).strip() for sentence in image["sentences"]][:_CAPTIONS]
        path = folder / root / file
        yield sample(path.stem, "image.jpg", path, {"captions": captions}, ("captions",))


def winoground(folder: Path) -> Samples:
    """``examples.jsonl`` beside ``images/`` (in ``data/`` or not): two samples for each example."""
    lines = needed(folder, "examples.jsonl", "data/examples.jsonl")
    images = by_stem(needed(lines.parent, "images"), *_PICTURES)
    for line in lines.read_text(encoding="utf-8").splitlines():
        example: dict[str, Any] = json.loads(line) if line.strip() else {}
        for side in (0, 1) if example else ():
            name = str(example[f"image_{side}"])
            metadata = {"caption": example[f"caption_{side}"], "group": str(example["id"])}
            if example.get("tag"):
                metadata["tag"] = example["tag"]
            path = images.get(name, images.get(Path(name).stem, lines.parent / "images" / name))
            yield sample(f"{example['id']}/{side}", "image.jpg", path, metadata, ("caption",))


def sugarcrepe(folder: Path) -> Samples:
    """``data/{add,replace,swap}_*.json`` (or in the folder itself) beside COCO's ``val2017/``."""
    data = folder / "data" if (folder / "data").is_dir() else folder
    files = sorted(path for path in data.glob("*_*.json") if path.stem.split("_")[0] in _KINDS)
    if not files:
        raise LayoutError(f"{data} has no add_att.json, replace_obj.json and so on")
    pictures = needed(folder, "val2017", "images/val2017")
    for file in files:
        for number, entry in document(file).items():
            metadata = {
                "caption": entry["caption"],
                "negative_caption": entry["negative_caption"],
                "kind": file.stem,
            }
            path = pictures / entry["filename"]
            yield sample(f"{file.stem}/{number}", "image.jpg", path, metadata, tuple(metadata)[:2])


def msrvtt(folder: Path) -> Samples:
    """``MSRVTT_JSFUSION_test.csv`` (the 1,000 of 1k-A) beside the videos, in any folder below."""
    videos = by_stem(folder, "mp4", "avi", "webm", "mkv")
    for row in table(needed(folder, "MSRVTT_JSFUSION_test.csv")):
        name = row["video_id"]
        path = videos.get(name, folder / f"{name}.mp4")
        yield sample(name, "video.mp4", path, {"caption": row["sentence"]}, ("caption",))
