"""One picture of the corpus: a few samples of every source."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import soundfile
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from .read import read_samples

Draw = Callable[[Axes, dict[str, Any]], None]
COLUMNS = 12


def _spread(samples: Iterable[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    held = list(samples)
    return [held[int(i)] for i in np.linspace(0, len(held) - 1, count)]


def _metadata(sample: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(sample["json"])
    return values


def _image(member: str) -> Draw:
    def draw(axes: Axes, sample: dict[str, Any]) -> None:
        axes.imshow(np.asarray(Image.open(io.BytesIO(sample[member]))), interpolation="nearest")

    return draw


def _depth(axes: Axes, sample: dict[str, Any]) -> None:
    depth = np.asarray(Image.open(io.BytesIO(sample["depth.png"]))).astype(float)
    depth[depth == 0] = np.nan
    axes.imshow(depth, cmap=matplotlib.colormaps["viridis_r"], interpolation="nearest")
    text = f"{np.nanmin(depth) / 1000:.2f}-{np.nanmax(depth) / 1000:.2f} m"
    axes.text(0.5, -0.04, text, transform=axes.transAxes, ha="center", va="top", fontsize=5)


def _spectrogram(member: str) -> Draw:
    def draw(axes: Axes, sample: dict[str, Any]) -> None:
        sound, rate = soundfile.read(io.BytesIO(sample[member]))
        window = rate // 40  # 25 ms every 10 ms
        frames = np.lib.stride_tricks.sliding_window_view(sound, window)[:: rate // 100]
        power = np.abs(np.fft.rfft(frames * np.hanning(window))) ** 2
        decibels = 10 * np.log10(power.T + 1e-6)
        axes.imshow(decibels, origin="lower", aspect="auto", cmap="magma", vmin=-45, vmax=20)
        text = f"{len(sound) / rate:.2f} s"
        axes.text(0.5, -0.04, text, transform=axes.transAxes, ha="center", va="top", fontsize=5)

    return draw


def _imu(axes: Axes, sample: dict[str, Any]) -> None:
    imu = np.load(io.BytesIO(sample["imu.npy"])).astype(float)[:, :200]
    scaled = imu / np.maximum(np.abs(imu).max(1, keepdims=True), 1e-6)
    for channel, line in enumerate(scaled):
        color = ("tab:blue", "tab:orange")[channel // 3]
        axes.plot(line - 2.2 * channel, color=color, linewidth=0.5)


def _row(
    figure: Figure, row: int, rows: int, samples: Sequence[dict[str, Any]], draw: Draw, title: str
) -> None:
    for column, sample in enumerate(samples):
        axes = figure.add_axes(
            ((column + 0.09) / COLUMNS, 1 - (row + 0.9) / rows, 0.82 / COLUMNS, 0.62 / rows)
        )
        draw(axes, sample)
        axes.set_axis_off()
        metadata = _metadata(sample)
        name = metadata.get("name", metadata.get("label", ""))
        axes.set_title(name if len(name) <= 20 else name[:18] + "...", fontsize=5, pad=1.5)
    figure.text(0.004, 1 - (row + 0.11) / rows, title, fontsize=7, weight="bold")


def draw_overview(folder: Path, path: Path) -> None:
    """Draw samples of every source in ``folder`` into the PNG ``path``."""
    emoji = _spread(read_samples(folder, "emoji", "test"), COLUMNS)
    furniture = _spread(read_samples(folder, "furniture", "train"), COLUMNS)
    speech = _spread(read_samples(folder, "speech", "train"), COLUMNS)
    spoken = _spread(read_samples(folder, "speech", "test"), COLUMNS)
    sounds = _spread(read_samples(folder, "sounds", "train"), COLUMNS)
    motion = list(islice(read_samples(folder, "motion", "train"), 0, None, 3))[:COLUMNS]
    exercise = _spread(read_samples(folder, "exercise", "test"), COLUMNS)
    styles = ("noto", "twemoji", "fluent", "fluent_hc", "openmoji")
    rows: list[tuple[str, Sequence[dict[str, Any]], Draw]] = [
        *((f"emoji, test: {style}", emoji, _image(f"{style}.webp")) for style in styles),
        ("furniture, train: icon", furniture, _image("icon.webp")),
        ("furniture, train: depth (rendered)", furniture, _depth),
        ("speech, train: voice 1 (synthetic)", speech, _spectrogram("v1.ogg")),
        ("speech, train: voice 2 (synthetic)", speech, _spectrogram("v2.ogg")),
        ("speech, test: unseen voice and concepts", spoken, _spectrogram("v5.ogg")),
        ("sounds, train: image", sounds, _image("image.webp")),
        ("sounds, train: audio (recorded)", sounds, _spectrogram("audio.ogg")),
        ("motion, train: image", motion, _image("image.webp")),
        ("motion, train: accelerometer (blue), gyroscope (orange), 10 s", motion, _imu),
        ("exercise, test: accelerometer (blue), gyroscope (orange), 4 s", exercise, _imu),
    ]
    figure = Figure(figsize=(COLUMNS * 0.72, len(rows) * 0.92), dpi=150)
    for index, (title, samples, draw) in enumerate(rows):
        _row(figure, index, len(rows), samples, draw, title)
    buffer = io.BytesIO()
    figure.savefig(buffer, metadata={"Software": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path)
