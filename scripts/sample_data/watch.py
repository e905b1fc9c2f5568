"""Accelerometer, gyroscope, side and class: the exercises again, one split per person."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from .exercise import EXERCISES, GRAVITY, LICENCE, RATE_HZ, UNITS, WINDOW, load_recordings
from .motion import npy
from .shards import Description, Sample, write_source


def build(folder: Path, cache: Path) -> dict[str, Any]:
    """Write the source ``watch``; returns its manifest."""
    data = load_recordings(cache)
    samples: dict[str, list[Sample]] = defaultdict(list)
    for index, (series, label, subject, side) in enumerate(
        zip(data["X"], data["y"], data["subject"], data["side"], strict=True)
    ):
        imu = series.T * np.array([GRAVITY] * 3 + [1.0] * 3)[:, None]  # [6, T]
        for part in range(imu.shape[1] // WINDOW):
            piece = imu[:, part * WINDOW : (part + 1) * WINDOW]
            metadata = {
                "label": EXERCISES[data["y_labels"][int(label)]],
                "side": "right" if side == 1 else "left",
                "subject": int(subject),
                "rate_hz": RATE_HZ,
            }
            members = {"imu.npy": npy(piece.astype(np.float16))}
            samples[f"subject_{int(subject)}"].append(
                Sample(f"{index:03d}-{part:02d}", members, metadata)
            )
    about = Description(
        name="watch",
        description=(
            "The recordings of the source exercise in consecutive windows of 4 s, [6, 200] at 50 "
            "Hz: accelerometer xyz (gravity included) then gyroscope xyz, with the side of the "
            "body. One split per person, for cross-validation; what is left at the end of a "
            "recording is left out."
        ),
        origin="seglearn 1.2.5, watch_dataset.npy (Burns et al. 2018, arXiv:1802.01489)",
        licences=[LICENCE],
        fields={
            "imu.npy": {"kind": "imu", "units": UNITS},
            "json": {"kind": "json", "keys": ["label", "side", "subject", "rate_hz"]},
        },
    )
    order = sorted(samples, key=lambda split: int(split.rpartition("_")[2]))
    return write_source(folder, about, {split: samples[split] for split in order})
