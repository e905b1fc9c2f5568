"""The report: one HTML page that needs no network, from results and a few facts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup
from torch import Tensor

from multimodal.evaluation.evaluators.retrieval import RetrievalResult
from multimodal.evaluation.evaluators.zero_shot import ZeroShotResult
from multimodal.evaluation.report.charts import (
    COLOURS,
    Chart,
    Link,
    heat_map,
    number,
    pair_diagram,
)
from multimodal.evaluation.report.sections import Section
from multimodal.evaluation.results import Results
from multimodal.evaluation.uncertainty import mark, percents

MAX_CLASSES_WITH_NUMBERS = 16


@dataclass(frozen=True, slots=True)
class Card:
    """One sample in a gallery: how it looks or sounds, and what it is called."""

    media: Markup
    caption: str
    score: float | None = None
    right: bool = False


@dataclass(frozen=True, slots=True)
class Gallery:
    """One direction of retrieval in examples.

    Attributes:
        result: the direction's figures.
        rows: a query, its nearest items, and the expected rank of the first right one.
    """

    result: RetrievalResult
    rows: list[tuple[Card, list[Card], float]]

    @property
    def text(self) -> bool:
        """Whether the neighbours are words, which are set as a list."""
        return self.result.gallery == "text"


@dataclass(frozen=True, slots=True)
class Page:
    """What the report shows.

    Attributes:
        name: the run's.
        command: that made it, for reuse.
        created: when, for people.
        facts: (label, value) shown large at the top.
        results: the figures.
        curves: charts of the training log.
        galleries: examples of retrieval.
        sections: further parts, in their order.
        config: the run's configuration as YAML.
    """

    name: str
    command: str
    created: str
    facts: list[tuple[str, str]]
    results: Results
    curves: list[Chart] = field(default_factory=list)
    galleries: list[Gallery] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    config: str = ""


def make_gallery(
    result: RetrievalResult,
    show: Callable[[str, int], Markup],
    caption: Callable[[int], str],
) -> Gallery:
    """The examples of ``result`` as cards.

    Args:
        result: with its examples.
        show: draws (modality, sample index).
        caption: names a sample.
    """
    rows = [
        (
            Card(show(result.query, example.query), caption(example.query)),
            [
                Card(show(result.gallery, index), caption(index), score, right)
                for index, score, right in example.neighbours
            ],
            example.rank,
        )
        for example in result.examples
    ]
    return Gallery(result, rows)


def links(results: Results) -> list[Link]:
    """One edge per pair of modalities: its mean lift over chance, over sets and directions.

    It counts as bound where at least one of the results is above chance and shortcuts.
    """
    lifts: dict[tuple[str, str], list[tuple[float, bool, bool]]] = {}
    for result in results.of(RetrievalResult):
        if result.composed:
            continue
        lift = _lift(result.scores.recall[1], result.scores.chance_recall[1])
        ends = sorted((result.query, result.gallery))
        entry = (lift, result.trained, not result.not_above)
        lifts.setdefault((ends[0], ends[1]), []).append(entry)
    edges = []
    for pair, values in lifts.items():
        sizes, trained, above = zip(*values, strict=True)
        edges.append(Link(pair, any(trained), sum(sizes) / len(sizes), any(above)))
    return edges


def render(page: Page) -> str:
    """The page as HTML."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("multimodal.evaluation.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=_percent, number=number, lift=_lift_label, percents=percents, mark=mark
    )
    retrievals = page.results.of(RetrievalResult)
    zero_shots = page.results.of(ZeroShotResult)
    return environment.get_template("page.html").render(
        page=page,
        diagram=pair_diagram(links(page.results)),
        kinds=[
            (kind, title, _by_set(page.results, kind))
            for kind, title in ((True, "Trained together"), (False, "Never trained together"))
        ],
        galleries=[
            (name, [gallery for gallery in page.galleries if gallery.result.set == name])
            for name in dict.fromkeys(gallery.result.set for gallery in page.galleries)
        ],
        matrices=[
            (result, heat_map(result.matrix.double().numpy()), result.matrix.aminmax())
            for result in retrievals
            if result.matrix is not None
        ],
        confusions=[(z, _confusion(z.scores.confusion, z.classes)) for z in zero_shots],
        colours=COLOURS,
    )


def _by_set(
    results: Results, trained: bool
) -> list[tuple[str, list[RetrievalResult], list[ZeroShotResult]]]:
    rows = []
    every = results.of(RetrievalResult), results.of(ZeroShotResult)
    for name in results.sets:
        retrievals = [r for r in every[0] if (r.set, r.trained) == (name, trained)]
        zero_shots = [z for z in every[1] if (z.set, z.trained) == (name, trained)]
        if retrievals or zero_shots:
            rows.append((name, retrievals, zero_shots))
    return rows


def _confusion(counts: Tensor | None, classes: Sequence[str]) -> dict[str, object]:
    """Shares per row (of a label's samples), as a table or, for many classes, as a picture.

    Empty if samples have several labels: a sample has no single row then.
    """
    if counts is None:
        return {}
    totals = counts.sum(dim=1)
    shares = counts / totals.clamp_min(1e-12)[:, None]
    if len(classes) > MAX_CLASSES_WITH_NUMBERS:
        return {"picture": heat_map(shares.numpy())}
    rows: Sequence[object] = list(
        zip(classes, totals.round().int().tolist(), shares.tolist(), strict=True)
    )
    return {"rows": rows}


def _lift(value: float, chance: float) -> float:
    return value / chance if chance > 0 else 0.0


def _lift_label(value: float, chance: float) -> str:
    lift = _lift(value, chance)
    return f"{lift:.0f}×" if lift >= 9.5 else f"{lift:.1f}×"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"
