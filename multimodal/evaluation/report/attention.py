"""Drawings of attention on images, spectrograms, texts and curves.

Everything is drawn from the model's inputs, so that heat maps and inputs are aligned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from multimodal.data.preview import colour_mapped, image_uri

PICTURE_PX = 128
SPECTROGRAM_PX = (220, 96)
HOT = (230, 120, 20)  # of tokens and time spans
LINES = ("#0072b2", "#d55e00", "#009e73")
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Attended:
    """Attention of one query over one modality of one sample.

    Attributes:
        query: the source of the attention.
        modality: the target of the attention.
        media: the drawing.
        picture: the same as a picture; None if there is only a number.
    """

    query: str
    modality: str
    media: Markup
    picture: Image.Image | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """One sample with its attention maps, targets and predictions.

    Attributes:
        name: of the sample.
        lines: (label, text), such as ("digit", "seven, said seven (93 %)").
        attended: the drawings.
    """

    name: str
    lines: list[tuple[str, str]]
    attended: list[Attended] = field(default_factory=list)


def scaled(values: Array) -> Array:
    """``values`` over their range, to [0, 1]; all equal: zeros."""
    low, high = float(values.min()), float(values.max())
    result: Array = (values - low) / max(high - low, 1e-12)
    return result


def overlay(base: Image.Image, heat: Array, size: tuple[int, int]) -> Image.Image:
    """A picture under a heat map ``[h, w]``: cold places dim, hot ones glow."""
    under = np.asarray(base.convert("RGB").resize(size, Image.Resampling.BILINEAR), np.float64)
    levels = Image.fromarray((255 * scaled(heat)).astype(np.uint8))
    hot = np.asarray(levels.resize(size, Image.Resampling.BICUBIC), np.float64)[..., None] / 255
    colours = np.asarray(colour_mapped(hot[..., 0], "inferno").convert("RGB"), np.float64)
    mixed = under * (0.35 + 0.3 * hot) + colours * 0.5 * hot
    return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))


def on_picture(pixels: Array, heat: Array) -> Image.Image:
    """A picture ``[C, H, W]`` of any scale under a heat map ``[h, w]``."""
    channels = np.repeat(pixels, 3, axis=0)[:3] if len(pixels) == 1 else pixels[:3]
    base = Image.fromarray((255 * scaled(channels).transpose(1, 2, 0)).astype(np.uint8))
    return overlay(base, heat, (PICTURE_PX, PICTURE_PX))


def on_spectrogram(bands: Array, heat: Array) -> Image.Image:
    """Log energies ``[mel, frames]`` under a heat map ``[h, w]``; low sounds are at the bottom."""
    base = colour_mapped(scaled(bands)[::-1], "gray")
    return overlay(base, heat[::-1], SPECTROGRAM_PX)


def on_words(words: Sequence[str], heat: Array) -> Markup:
    """Words, each with a background as strong as its share of the attention."""
    most = max(float(heat.max()), 1e-12)
    return Markup('<span class="text">{}</span>').format(
        Markup(" ").join(
            Markup('<span style="background:rgba(230,120,20,{})" title="{} %">{}</span>').format(
                f"{share / most * 0.85:.2f}", f"{100 * share:.0f}", word
            )
            for word, share in zip(words, heat.tolist(), strict=True)
        )
    )


def words_picture(words: Sequence[str], heat: Array, width: int = 360) -> Image.Image:
    """The same as a picture, for loggers; letters that the font lacks become boxes."""
    font, line, gap, margin = ImageFont.load_default(15), 24, 5, 6
    most = max(float(heat.max()), 1e-12)
    places, x, y = [], margin, margin
    for word in words:
        length = round(font.getlength(word))
        if x > margin and x + length > width - margin:
            x, y = margin, y + line
        places.append((x, y, length))
        x += length + gap
    picture = Image.new("RGB", (width, y + line + margin), "white")
    pen = ImageDraw.Draw(picture)
    for word, share, (left, top, length) in zip(words, heat.tolist(), places, strict=True):
        strength = 0.85 * share / most
        ground = tuple(round(255 + strength * (c - 255)) for c in HOT)
        pen.rectangle((left - 1, top, left + length + 1, top + line - 4), fill=ground)
        pen.text((left, top), word, fill="black", font=font)
    return picture


def lines_picture(series: Array, heat: Array) -> Image.Image:
    """Curves under the attention of each time span, as a picture for loggers."""
    width, height = 440, 180
    picture = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(picture)
    step = width / len(heat)
    for index, share in enumerate(scaled(heat).tolist()):
        ground = tuple(round(255 + 0.7 * share * (c - 255)) for c in HOT)
        pen.rectangle((index * step, 0, (index + 1) * step, height), fill=ground)
    for channel, colour in zip(scaled(series), cycle(LINES), strict=False):
        ys = 8 + (1 - channel) * (height - 16)
        xs = np.linspace(0, width, len(ys))
        pen.line(list(zip(xs.tolist(), ys.tolist(), strict=True)), fill=colour, width=2)
    return picture


def on_lines(series: Array, heat: Array) -> Markup:
    """Curves ``[channels, T]`` on backgrounds as strong as the attention of each time span."""
    width, height = 220, 90
    step = width / len(heat)
    grounds = [
        f'<rect x="{index * step:.1f}" y="0" width="{step:.1f}" height="{height}" '
        f'fill="rgb(230,120,20)" opacity="{share * 0.7:.2f}"/>'
        for index, share in enumerate(scaled(heat).tolist())
    ]
    level = scaled(series[:, :: max(1, series.shape[1] // 110)])
    lines = []
    for index, channel in enumerate(level):
        xs = np.linspace(0, width, len(channel))
        ys = 4 + (1 - channel) * (height - 8)
        corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
        lines.append(f'<polyline class="s{index % 8}" points="{corners}"/>')
    return Markup('<svg class="lines" viewBox="0 0 {} {}" width="{}">{}</svg>').format(
        width, height, width, Markup("".join([*grounds, *lines]))
    )


def tag(picture: Image.Image) -> Markup:
    """A picture as HTML that needs no network."""
    return Markup('<img src="{}" alt="attention">').format(image_uri(picture))


def gallery(examples: Sequence[Example]) -> Markup:
    """The examples, one under the other."""
    rows = []
    for example in examples:
        cards = Markup("").join(
            Markup(
                '<figure class="card" style="width:auto;max-width:14rem">{}'
                "<figcaption><span>{} → {}</span></figcaption></figure>"
            ).format(each.media, each.query, each.modality)
            for each in example.attended
        )
        said = Markup("<br>").join(
            Markup("<b>{}</b> {}").format(label, text) for label, text in example.lines
        )
        rows.append(
            Markup(
                '<div class="row"><p><small>{}</small><br>{}</p><div class="cards">{}</div></div>'
            ).format(example.name, said, cards)
        )
    return Markup('<div class="rows attention">{}</div>').format(Markup("").join(rows))
