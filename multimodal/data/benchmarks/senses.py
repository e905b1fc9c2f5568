"""Benchmarks of other senses: depth (SUN RGB-D, NYU), thermal (LLVIP), motion (Ego4D)."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from multimodal.core.hashing import generator
from multimodal.data.benchmarks.files import (
    LayoutError,
    Samples,
    by_stem,
    document,
    in_file,
    needed,
    table,
)
from multimodal.data.packing.contents import Inline
from multimodal.data.packing.items import Item, Refusal

# of SUN RGB-D's sensors: the distance of emitter and camera in metres, by the folder's name
_BASELINES = {"kv1": 0.075, "kv2": 0.075, "realsense": 0.095, "xtion": 0.095}
_SUN = (
    "bathroom bedroom classroom computer_room conference_room corridor dining_area dining_room "
    "discussion_area furniture_store home_office kitchen lab lecture_theatre library living_room "
    "office rest_space study_space"
)
_NYU = "bathroom bedroom bookstore classroom dining_room home_office kitchen living_room office"
SUN_SCENES, NYU_SCENES = frozenset(_SUN.split()), frozenset(_NYU.split())
_CLIP_S, _STEP_MS = 5.0, 5.0  # of Ego4D: seconds of a clip, and between two readings (200 Hz)
_TRIES = 100  # places for a crop of the background


def sun_rgbd(folder: Path) -> Samples:
    """``SUNRGBD/`` and ``SUNRGBDtoolbox/``: the test scenes of the challenge's 19 kinds.

    Song et al. 2015, Section 5; the depth is the refined one (``depth_bfx``), 16 bits rotated by 3.
    """
    yield from _scenes(folder, lambda place, scene: scene if scene in SUN_SCENES else None)


def nyu_depth(folder: Path) -> Samples:
    """The test scenes of NYU Depth v2, as SUN RGB-D holds them, in ten classes.

    Nine kinds of rooms, and ``others`` for the other eighteen.
    """

    def label(place: str, scene: str) -> str | None:
        if "/NYUdata/" not in place:
            return None
        return scene if scene in NYU_SCENES else "others"

    yield from _scenes(folder, label)


def _scenes(folder: Path, label_of: Any) -> Samples:
    from scipy.io import loadmat  # type: ignore[import-untyped]

    split = needed(
        folder,
        "SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat",
        "SUNRGBDtoolbox/traintestSUNRGBD/allSplit.mat",
    )
    listed = [str(entry.item()) for entry in loadmat(split)["alltest"].ravel()]
    for path in listed:
        place = "SUNRGBD/" + path.rstrip("/").rpartition("SUNRGBD/")[2]
        scene = folder / place
        if not (scene / "scene.txt").is_file():
            yield Refusal(place, "no_file", f"there is no {scene / 'scene.txt'}")
            continue
        label = label_of(f"{place}/", (scene / "scene.txt").read_text().strip())
        if label is not None:
            yield _scene(scene, place, label)


def _scene(scene: Path, place: str, label: str) -> Item | Refusal:
    maps = [*sorted((scene / "depth_bfx").glob("*.png")), *sorted((scene / "depth").glob("*.png"))]
    pictures = sorted((scene / "image").glob("*.jpg"))
    if not maps or not pictures:
        return Refusal(place, "no_file", f"{scene} lacks its depth map or its picture")
    numbers = (scene / "intrinsics.txt").read_text().split()
    metadata = {
        "label": label.replace("_", " "),
        "focal": float(numbers[0]),
        "baseline": _BASELINES[place.split("/")[1]],
    }
    members = {"depth.png": in_file(maps[0]), "image.jpg": in_file(pictures[0])}
    return Item(place.removeprefix("SUNRGBD/"), members, metadata, "test", ("label",))


def llvip(folder: Path) -> Samples:
    """``infrared/test/`` and ``Annotations/``: every person cut out, and as much background.

    A crop of the background has the size of the person's and covers none; where a hundred seeded
    places all cover one, it is left out, and the report says so. Published crops are not known, so
    figures vary by them.
    """
    for path in sorted(needed(folder, "infrared/test").glob("*.jpg")):
        note = folder / "Annotations" / f"{path.stem}.xml"
        if not note.is_file():
            yield Refusal(path.stem, "no_file", f"there is no file {note}")
            continue
        with Image.open(path) as opened:
            picture = opened.convert("L")
        boxes = _boxes(note, picture.size)
        for number, box in enumerate(boxes):
            name = f"{path.stem}_{number}"
            yield _crop(picture, box, f"{name}_person", "person")
            place = _background(picture.size, box, boxes, name)
            if place is None:
                yield Refusal(name, "no_background", "a person is wherever a crop was tried")
            else:
                yield _crop(picture, place, f"{name}_background", "background")


def _boxes(note: Path, size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    boxes = []
    for each in ElementTree.parse(note).getroot().iter("bndbox"):
        left, top, right, bottom = (
            round(float(each.findtext(side, "nan"))) for side in ("xmin", "ymin", "xmax", "ymax")
        )
        box = (max(0, left), max(0, top), min(size[0], right), min(size[1], bottom))
        if box[2] - box[0] < 1 or box[3] - box[1] < 1:
            raise LayoutError(f"{note}: the box {(left, top, right, bottom)} is empty")
        boxes.append(box)
    return boxes


def _background(
    size: tuple[int, int],
    like: tuple[int, int, int, int],
    persons: list[tuple[int, int, int, int]],
    name: str,
) -> tuple[int, int, int, int] | None:
    """A box as large as ``like`` that meets no person's; None where none is met with."""
    width, height = like[2] - like[0], like[3] - like[1]
    random = generator("llvip", name)
    for _ in range(_TRIES):
        left = int(random.integers(0, size[0] - width + 1))
        top = int(random.integers(0, size[1] - height + 1))
        box = (left, top, left + width, top + height)
        if not any(
            box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
            for other in persons
        ):
            return box
    return None


def _crop(picture: Any, box: tuple[int, int, int, int], name: str, label: str) -> Item:
    buffer = io.BytesIO()
    picture.crop(box).save(buffer, "PNG")
    return Item(name, {"thermal.png": Inline(buffer.getvalue())}, {"label": label}, "test")


def ego4d_imu(folder: Path) -> Samples:
    """``ego4d.json`` and ``imu/VIDEO.csv`` (in ``v1/``, ``v2/`` or not): five seconds of each.

    From the middle of every video with motion and one scenario; accelerometer, then gyroscope, at
    200 readings a second.
    """
    readings = by_stem(folder, "csv")
    about = needed(folder, "ego4d.json", "v2/ego4d.json", "v1/ego4d.json")
    for video in document(about)["videos"]:
        scenarios = video.get("scenarios") or []
        if len(scenarios) != 1 or not video.get("has_imu", True):
            continue
        name = str(video["video_uid"])
        if name not in readings:
            yield Refusal(name, "no_file", f"there is no {name}.csv of its motion")
            continue
        yield _motion(name, readings[name], str(scenarios[0]))


def _motion(name: str, path: Path, label: str) -> Item | Refusal:
    sides = [f"{kind}_{axis}" for kind in ("accl", "gyro") for axis in "xyz"]
    rows = [row for row in table(path) if all(row[side] for side in sides)]
    times = np.array([float(row["canonical_timestamp_ms"]) for row in rows])
    count = round(1000 * _CLIP_S / _STEP_MS)
    if len(times) < 2 or times[-1] - times[0] < 1000 * _CLIP_S:
        return Refusal(name, "too_short", f"{path} holds less than {_CLIP_S:g} s")
    start = (times[0] + times[-1]) / 2 - 500 * _CLIP_S
    wanted = start + _STEP_MS * np.arange(count)
    values = [np.interp(wanted, times, [float(row[side]) for row in rows]) for side in sides]
    buffer = io.BytesIO()
    np.save(buffer, np.stack(values).astype(np.float32))
    metadata = {"label": label, "rate_hz": 1000 / _STEP_MS}
    return Item(name, {"imu.npy": Inline(buffer.getvalue())}, metadata, "test", ("label",))
