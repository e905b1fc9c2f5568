"""Image and IMU: a watch on a standing, walking, running or playing person, with their emoji."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from multimodal.core.hashing import stable_hash

from .concepts import SEEN_STYLES, Concept
from .emoji import STYLE_LICENCES
from .fetch import SKTIME, read_wheel
from .images import compact_webp, draw_icon
from .shards import Description, Licence, Sample, write_source

RATE_HZ = 10
VAL_PER_CLASS = 2
# Class of the data set -> (class in words, name of the emoji, captions).
CLASSES = {
    "standing": ("standing", "person standing", ["a person standing", "standing still"]),
    "walking": ("walking", "person walking", ["a person walking", "walking"]),
    "running": ("running", "person running", ["a person running", "running"]),
    "badminton": ("badminton", "badminton", ["a person playing badminton", "badminton"]),
}


def concept_names() -> set[str]:
    """Names of the emoji that stand for the classes; they have to be training concepts."""
    return {name for _, name, _ in CLASSES.values()}


def npy(array: np.ndarray) -> bytes:
    """An array as the bytes of a ``.npy`` file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def read_series(text: str) -> list[tuple[np.ndarray, str]]:
    """Series ``[6, T]`` and class of every row of a ``.ts`` file."""
    rows = text.split("@data", 1)[1].split()
    series = []
    for row in rows:
        *channels, label = row.split(":")
        series.append((np.array([c.split(",") for c in channels], np.float64), label.lower()))
    return series


def build(
    folder: Path, cache: Path, concepts: Sequence[Concept], sets: dict[str, Any]
) -> dict[str, Any]:
    """Write the source ``motion``; returns its manifest."""
    by_name = {concept.name: concept for concept in concepts}
    samples: dict[str, list[Sample]] = defaultdict(list)
    for part in ("TRAIN", "TEST"):
        name = f"sktime/datasets/data/BasicMotions/BasicMotions_{part}.ts"
        held = dict.fromkeys(CLASSES, 0)
        for index, (series, label) in enumerate(
            read_series(read_wheel(SKTIME, cache, name).decode("latin-1"))
        ):
            words, emoji, captions = CLASSES[label]
            concept = by_name[emoji]
            split = part.lower()
            if part == "TRAIN" and held[label] < VAL_PER_CLASS:
                held[label] += 1
                split = "val"
            style = SEEN_STYLES[stable_hash("motion style", part, index) % len(SEEN_STYLES)]
            members = {
                "imu.npy": npy(series.astype(np.float16)),
                "image.webp": compact_webp(draw_icon(sets[style], concept.icons[style])),
            }
            metadata = {
                "label": words,
                "name": captions[0],
                "captions": captions,
                "concept": concept.concept,
                "rate_hz": RATE_HZ,
                "style": style,
            }
            samples[split].append(Sample(f"{part.lower()}-{index:02d}", members, metadata))
    about = Description(
        name="motion",
        description=(
            "Ten seconds of a smart watch on a person, [6, 100] at 10 Hz, accelerometer xyz then "
            "gyroscope xyz, with an emoji of the activity: pairs of a class, not of an instance. "
            "Train and test are those of BasicMotions, val is the first two series of each class "
            "in its train; who wore the watch is not known, so a person may be in all of them."
        ),
        origin="BasicMotions of the UEA archive, in the wheel of sktime 1.2.0",
        licences=[
            Licence(
                "imu.npy",
                "BSD-3-Clause",
                "sktime developers (the package); J. Clements, University of East Anglia, and "
                "the UEA multivariate time series archive (the data)",
                "https://www.timeseriesclassification.com/description.php?Dataset=BasicMotions",
            ),
            *(STYLE_LICENCES[style] for style in SEEN_STYLES),
        ],
        fields={
            "imu.npy": {"kind": "imu", "units": "unknown (not said by the source)"},
            "image.webp": {"kind": "image"},
            "json": {
                "kind": "json",
                "keys": ["label", "name", "captions", "concept", "rate_hz", "style"],
            },
        },
    )
    order = ("train", "val", "test")
    return write_source(folder, about, {split: samples[split] for split in order})
