"""IMU and text: shoulder exercises with a smart watch, split by person."""

from __future__ import annotations

import hashlib
import io
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from .fetch import SEGLEARN, read_wheel
from .motion import npy
from .shards import Description, Licence, Sample, write_source

RATE_HZ = 50
WINDOW = 4 * RATE_HZ
CHUNK = 4 * WINDOW  # training crops windows out of it
GRAVITY = 9.80665  # m/s^2 in one g
# The file is a pickle, which can run code: it is loaded only if it is the one that was looked at.
DATA_SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"
HELD_OUT = {8: "val", 9: "test", 10: "test"}
UNITS = (
    "m/s^2 and rad/s. The source names no units; its accelerations were taken as g (their median "
    "norm is 1.07) and multiplied by 9.80665, its angular rates as rad/s (where gravity's "
    "direction follows them, the factor is about 1)."
)
LICENCE = Licence(
    "imu.npy",
    "BSD-3-Clause",
    "seglearn, Copyright (c) 2018 David Burns",
    "https://github.com/dmbee/seglearn",
)
EXERCISES = {
    "PEN": "pendulum",
    "ABD": "abduction",
    "FEL": "forward elevation",
    "IR": "internal rotation",
    "ER": "external rotation",
    "TRAP": "trapezius extension",
    "ROW": "upright row",
}


def load_recordings(cache: Path) -> dict[str, Any]:
    """The data set as seglearn stores it.

    Raises:
        RuntimeError: the file is not the known one.
    """
    data = read_wheel(SEGLEARN, cache, "seglearn/data/watch_dataset.npy")
    digest = hashlib.sha256(data).hexdigest()
    if digest != DATA_SHA256:
        raise RuntimeError(f"watch_dataset.npy has SHA-256 {digest}, expected {DATA_SHA256}")
    recordings: dict[str, Any] = np.load(io.BytesIO(data), allow_pickle=True).item()
    return recordings


def build(folder: Path, cache: Path) -> dict[str, Any]:
    """Write the source ``exercise``; returns its manifest."""
    data = load_recordings(cache)
    samples: dict[str, list[Sample]] = defaultdict(list)
    for index, (series, label, subject, side) in enumerate(
        zip(data["X"], data["y"], data["subject"], data["side"], strict=True)
    ):
        subject, words = int(subject), EXERCISES[data["y_labels"][int(label)]]
        split = HELD_OUT.get(subject, "train")
        arm = "right" if side == 1 else "left"
        imu = series.T * np.array([GRAVITY] * 3 + [1.0] * 3)[:, None]  # [6, T]
        length = CHUNK if split == "train" else WINDOW
        for part in range(-(-imu.shape[1] // length)):
            piece = imu[:, part * length : (part + 1) * length]
            if piece.shape[1] < WINDOW:
                continue  # what is left at the end is shorter than a window
            metadata = {
                "label": words,
                "captions": [words, f"{words} exercise of the {arm} shoulder"],
                "subject": subject,
                "side": arm,
                "recording": index,
                "rate_hz": RATE_HZ,
            }
            members = {"imu.npy": npy(piece.astype(np.float16))}
            samples[split].append(Sample(f"{index:03d}-{part:02d}", members, metadata))
    about = Description(
        name="exercise",
        description=(
            "Seven shoulder exercises of ten people with a smart watch at 50 Hz, [6, T]: "
            "accelerometer xyz (gravity included) then gyroscope xyz. train: consecutive chunks "
            "of up to 16 s (T 200 to 800), to be cropped; val (subject 8) and test (subjects 9, "
            "10): consecutive windows of 4 s (T 200). No two samples overlap; the end of a "
            "recording is left out where it is shorter than 4 s."
        ),
        origin="seglearn 1.2.5, watch_dataset.npy (Burns et al. 2018, arXiv:1802.01489)",
        licences=[LICENCE],
        fields={
            "imu.npy": {
                "kind": "imu",
                "units": UNITS,
            },
            "json": {
                "kind": "json",
                "keys": ["label", "captions", "subject", "side", "recording", "rate_hz"],
            },
        },
    )
    order = ("train", "val", "test")
    return write_source(folder, about, {split: samples[split] for split in order})
