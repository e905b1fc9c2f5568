"""A map of embeddings as SVG: coloured by modality or, at a click, by class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

from multimodal.evaluation.report.charts import COLOURS

if TYPE_CHECKING:
    from multimodal.evaluation.evaluators.space import EmbeddingMap

MAX_LEGEND = 16
_SIZE, _MARGIN = 420, 10
# One shape per modality, so that both colourings distinguish the modalities; radius 4.
_SHAPES = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0Z",
    "M-3.6-3.6H3.6V3.6H-3.6Z",
    "M0-4.8L4.4 3.4H-4.4Z",
    "M0-5L5 0L0 5L-5 0Z",
    "M-5-1.7H-1.7V-5H1.7V-1.7H5V1.7H1.7V5H-1.7V1.7H-5Z",
    "M0 4.8L-4.4-3.4H4.4Z",
)


def draw_map(laid_out: EmbeddingMap) -> Markup:
    """The map of one set as a figure with its legends."""
    modalities = list(dict.fromkeys(laid_out.modalities))
    classes = sorted(set(laid_out.labels))
    marks = []
    labels = laid_out.labels or [""] * len(laid_out.captions)
    for (x, y), modality, label, caption in zip(
        laid_out.points.tolist(), laid_out.modalities, labels, laid_out.captions, strict=True
    ):
        kind = modalities.index(modality)
        place = classes.index(label) if label else 0
        label_text = " · ".join(
            filter(None, [modality, caption, label if label != caption else ""])
        )
        marks.append(
            Markup(
                '<path class="s{}" style="--class:{}" transform="translate({} {})" d="{}">'
                "<title>{}</title></path>"
            ).format(
                kind % COLOURS,
                _hue(place, len(classes)),
                f"{_MARGIN + x * (_SIZE - 2 * _MARGIN):.1f}",
                f"{_MARGIN + y * (_SIZE - 2 * _MARGIN):.1f}",
                _SHAPES[kind % len(_SHAPES)],
                label_text,
            )
        )
    return Markup(
        '<figure class="panel map"><figcaption><b>{}</b>{}</figcaption>'
        '<svg class="chart" viewBox="0 0 {} {}" role="img"><title>map of {}</title>{}</svg>'
        "{}{}</figure>"
    ).format(
        laid_out.set,
        Markup('<button type="button" class="recolour" hidden>colour by class</button>')
        if classes
        else "",
        _SIZE,
        _SIZE,
        laid_out.set,
        Markup("").join(marks),
        _legend("modality", [(name, f"s{i % COLOURS}", "") for i, name in enumerate(modalities)]),
        _legend("class", [(c, "", _hue(i, len(classes))) for i, c in enumerate(classes)]),
    )


def _hue(place: int, count: int) -> str:
    return f"hsl({360 * place / max(count, 1):.0f} 65% {45 + 12 * (place % 2)}%)"


def _legend(kind: str, entries: Sequence[tuple[str, str, str]]) -> Markup:
    shown = [
        Markup('<span><svg viewBox="-6 -6 12 12" aria-hidden="true"><path class="{}" '
               'style="--class:{}" d="{}"/></svg>{}</span>').format(
            style, colour, _SHAPES[i % len(_SHAPES)] if kind == "modality" else _SHAPES[0], name
        )
        for i, (name, style, colour) in enumerate(entries[:MAX_LEGEND])
    ]  # fmt: skip
    if len(entries) > MAX_LEGEND:
        shown.append(Markup("<span>and {} more</span>").format(len(entries) - MAX_LEGEND))
    return Markup('<p class="legend of-{}">{}</p>').format(kind, Markup("").join(shown))
