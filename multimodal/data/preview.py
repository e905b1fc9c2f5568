"""Samples as HTML: pictures, sounds to play, depth in colours, motion as lines, text as text.

Everything is inside the page as data URIs, small enough that hundreds of samples stay under a few
megabytes.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from multimodal.data.decoding.values import DepthMap, Signal
from multimodal.data.decoding.video import Video

Array = NDArray[Any]

PICTURE_PX = 96
SPECTROGRAM_PX = (96, 64)
SOUND_S = 6.0  # longer sounds are cut in the page, not in the evaluation


def sample_html(modality: str, value: Array | str, rate: float | None = None) -> Markup:
    """One sample of one modality as an HTML fragment.

    Args:
        modality: its name; names other than image, depth, thermal, audio and text are drawn by
            their shape, as lines.
        value: as decoded, before transforms: text as a string; a picture ``[H, W, 3]`` uint8 (or
            ``[H, W]``); depth and thermal ``[H, W]`` where 0 means nothing measured; a sound
            ``[channels, T]`` in [-1, 1]; any other array ``[channels, T]`` or ``[F]``.
        rate: samples per second of a sound.

    Raises:
        ValueError: if the value's shape is none that can be drawn, or a sound has no ``rate``.
    """
    if isinstance(value, str):
        return Markup('<span class="text">{}</span>').format(value)
    painters: dict[str, Callable[[Array], Markup]] = {
        "image": _picture,
        "video": _picture,
        "depth": lambda depth: _field(depth, "viridis", near_is_bright=True),
        "thermal": lambda heat: _field(heat, "inferno", near_is_bright=False),
        "audio": lambda wave: _sound(wave, rate),
    }
    return painters.get(modality, _lines)(value)


def preview(modality: str, value: Array | str, rate: float | None = None) -> tuple[str, bytes]:
    """One sample as a small file: (media type, bytes).

    Args:
        modality: as for `sample_html`.
        value: as for `sample_html`.
        rate: as for `sample_html`.

    Raises:
        ValueError: as `sample_html`.
    """
    if isinstance(value, str):
        return "text/plain", value.encode()
    if modality == "audio":
        # Ogg streams carry a random number; the same sound must give the same bytes.
        return "audio/flac", _encoded(_mono(value, rate), float(rate or 0), "FLAC", "PCM_16")
    if modality in ("image", "video", "depth", "thermal"):
        drawn = str(sample_html(modality, value))
        content = drawn[drawn.index("base64,") + len("base64,") :].split('"', 1)[0]
        return "image/webp", base64.b64decode(content)
    return "image/svg+xml", _standalone(str(_lines(value))).encode()


def _standalone(svg: str) -> str:
    """A drawing of ours with the colours that the report's style sheet would give it."""
    style = "<style>polyline{fill:none;stroke-width:1.2}.s0{stroke:#0072b2}.s1{stroke:#d55e00}"
    style += ".s2{stroke:#009e73}</style>"
    head, _, rest = svg.partition(">")
    head = head.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"')
    return f"{head}>{style}{rest}"


def drawable(modality: str, value: Any) -> tuple[str | Array, float | None]:
    """A decoded value as `sample_html` and `preview` take it, with its rate.

    Of a video the frame in the middle, or where its sound is the modality the beginning of that.
    """
    if isinstance(value, Video):
        if modality != "audio":
            return value.frames([value.seconds / 2])[0], None
        value = value.sound(0.0, SOUND_S)
    if isinstance(value, Signal):
        return value.samples, value.rate
    return (value.values if isinstance(value, DepthMap) else value), None


def data_uri(media_type: str, content: bytes) -> str:
    """``content`` as a URI that needs no network."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def image_uri(picture: Image.Image, lossless: bool = False) -> str:
    """A WebP data URI of ``picture``."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=80, lossless=lossless)
    return data_uri("image/webp", buffer.getvalue())


def colour_mapped(values: Array, name: str) -> Image.Image:
    """Values in [0, 1] in the colours of a matplotlib map; NaN is transparent."""
    from matplotlib import colormaps  # slow to import

    rgba = colormaps[name](np.nan_to_num(values), bytes=True)
    rgba[..., 3] = np.where(np.isnan(values), 0, 255)
    return Image.fromarray(rgba)


def _image_tag(uri: str, kind: str) -> Markup:
    return Markup('<img class="{}" src="{}" alt="">').format(kind, uri)


def _picture(pixels: Array) -> Markup:
    picture = Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")
    picture.thumbnail((PICTURE_PX, PICTURE_PX))
    return _image_tag(image_uri(picture), "picture")


def _field(values: Array, colours: str, near_is_bright: bool) -> Markup:
    if values.ndim != 2:
        raise ValueError(f"expected a field [H, W]; got {list(values.shape)}")
    measured = np.where(values > 0, values, np.nan).astype(np.float64)
    if np.isnan(measured).all():
        scaled = measured
    else:
        low, high = np.nanpercentile(measured, [1, 99])
        scaled = np.clip((measured - low) / max(high - low, 1e-9), 0, 1)
    picture = colour_mapped(1 - scaled if near_is_bright else scaled, colours)
    picture.thumbnail((PICTURE_PX, PICTURE_PX), Image.Resampling.NEAREST)
    return _image_tag(image_uri(picture, lossless=True), "picture field")


def _sound(wave: Array, rate: float | None) -> Markup:
    wave = _mono(wave, rate)
    return Markup(
        '<span class="sound"><img src="{}" alt=""><audio controls preload="none" src="{}"></audio>'
        '<button type="button" hidden aria-label="play"></button><i></i></span>'
    ).format(
        image_uri(_spectrogram(wave)),
        data_uri("audio/ogg", _ogg(wave, float(rate or 0))),
    )


def _mono(wave: Array, rate: float | None) -> Array:
    if rate is None or wave.ndim != 2:
        raise ValueError(f"a sound needs a rate and [channels, T]; got {rate}, {list(wave.shape)}")
    mono: Array = wave[:, : int(SOUND_S * rate)].mean(axis=0)
    return mono


def _ogg(wave: Array, rate: float) -> bytes:
    # Opus is half as large, and took an eighth of the processor time of a run's evaluation.
    return _encoded(wave, rate, "OGG", "VORBIS")


def _encoded(wave: Array, rate: float, container: str, codec: str) -> bytes:
    buffer = io.BytesIO()
    import soundfile

    soundfile.write(buffer, wave, int(rate), format=container, subtype=codec)
    return buffer.getvalue()


def _spectrogram(wave: Array, window: int = 256, floor_db: float = -70.0) -> Image.Image:
    padded = np.pad(wave, (0, max(0, window - len(wave))))
    hop = max(1, (len(padded) - window) // (2 * SPECTROGRAM_PX[0]))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(window), axis=1)) ** 2
    decibels = 10 * np.log10(power / max(power.max(), 1e-12) + 1e-12)
    shown = np.clip(1 - decibels / floor_db, 0, 1).T[::-1]
    picture = colour_mapped(shown, "magma").convert("RGB")
    return picture.resize(SPECTROGRAM_PX, Image.Resampling.BILINEAR)


def _lines(series: Array, points: int = 96) -> Markup:
    """Curves of ``[channels, T]`` or ``[F]``, three channels (x, y, z of one sensor) per panel."""
    channels = np.atleast_2d(series).astype(np.float64)
    if channels.ndim != 2:
        raise ValueError(f"cannot draw an array of shape {list(series.shape)}")
    channels = channels[:6, :: max(1, -(-channels.shape[1] // points))]
    height = 32
    panels = [channels[start : start + 3] for start in range(0, len(channels), 3)]
    paths = []
    for row, panel in enumerate(panels):
        low, high = float(panel.min()), float(panel.max())
        scaled = (panel - low) / max(high - low, 1e-9)
        for index, line in enumerate(scaled):
            xs = np.linspace(1, 95, len(line))
            ys = row * height + 2 + (1 - line) * (height - 4)
            corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
            paths.append(f'<polyline class="s{index}" points="{corners}"/>')
    box = f"0 0 96 {height * len(panels)}"
    return Markup('<svg class="lines" viewBox="{}" aria-hidden="true">{}</svg>').format(
        box, Markup("".join(paths))
    )
