"""A benchmark's figures beside those that were published, in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from markupsafe import Markup
from rich import box
from rich.table import Table

from multimodal.evaluation.report.sections import Section
from multimodal.evaluation.report.tables import table


@dataclass
class Published:
    """What is published of an evaluation set.

    Args:
        figures: name -> where it stands in ``metrics.json`` below the set:
            ``zero_shot_image_label/top@1``.
        models: name of a model -> its published figures by those names, in percent.
        paper: where the published figures, and the metric, are from.

    Raises:
        ValueError: if a model has a figure that is none of ``figures``.
    """

    figures: Mapping[str, str]
    models: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    paper: str = ""

    def __post_init__(self) -> None:
        for model, values in self.models.items():
            if unknown := sorted(values.keys() - self.figures.keys()):
                raise ValueError(
                    f"published.models.{model}: {unknown[0]!r} is none of the figures "
                    f"{', '.join(self.figures)}"
                )


class Comparison(NamedTuple):
    """One figure of one set.

    Attributes:
        set: the evaluation set.
        figure: its name.
        ours: in percent; None where it could not be evaluated.
        interval: 95 %, in percent; None where there is none.
        others: model -> its published figure, in percent.
    """

    set: str
    figure: str
    ours: float | None
    interval: tuple[float, float] | None
    others: dict[str, float]


def compare(
    published: Mapping[str, Published | None], metrics: Mapping[str, Any]
) -> list[Comparison]:
    """The figures of all sets of which some are published.

    Args:
        published: set -> its published figures.
        metrics: of the evaluation, as ``metrics.json`` holds them.
    """
    figures = []
    for name, known in published.items():
        for figure, place in (known.figures if known else {}).items():
            assert known is not None
            task, _, metric = place.rpartition("/")
            row = metrics.get(name, {}).get(task, {})
            value, bounds = row.get(metric), row.get("interval", {}).get(metric)
            interval = None if bounds is None else (100 * bounds[0], 100 * bounds[1])
            others = {m: float(v[figure]) for m, v in known.models.items() if figure in v}
            ours = None if value is None else 100 * value
            figures.append(Comparison(name, figure, ours, interval, others))
    return figures


def terminal_table(rows: Sequence[Comparison]) -> Table:
    """The figures for a terminal, a line each."""
    made = Table(
        title="Benchmarks, in percent", title_justify="left", box=box.SIMPLE, caption_justify="left"
    )
    made.add_column("set", no_wrap=True)
    made.add_column("figure", no_wrap=True)
    made.add_column("this model", justify="right", no_wrap=True)
    made.add_column("(95 %)", justify="right", no_wrap=True)
    made.add_column("published", no_wrap=True)
    for row in rows:
        made.add_row(*_cells(row))
    return made


def section(rows: Sequence[Comparison], papers: Mapping[str, str]) -> Section:
    """The report's part: the table, and a bar for each figure.

    Args:
        rows: the figures.
        papers: set -> where its published figures are from.
    """
    cells = [(row.figure, row.set, *_cells(row)[2:], papers.get(row.set, "")) for row in rows]
    head = ("figure", "set", "this model", "95 % interval", "published", "paper")
    bars = Markup("").join(_bar(row) for row in rows if row.ours is not None)
    return Section(
        "benchmarks", "Benchmarks", table(head, cells) + bars,
        "This model's figures beside published ones, in percent. The thin marks are theirs.",
        place=5,
    )  # fmt: skip


def _bar(row: Comparison) -> Markup:
    marks = Markup("").join(
        Markup(
            '<span title="{}" style="position:absolute;left:{:.1f}%;width:2px;height:100%;'
            'background:currentColor"></span>'
        ).format(f"{model} {value:.1f}", value)
        for model, value in row.others.items()
    )
    line = Markup(
        '<div style="display:flex;gap:.8em;align-items:center">'
        '<span style="flex:0 0 16em">{}</span>'
        '<span style="flex:1;position:relative;height:.9em;background:rgba(127,127,127,.2)">'
        '<span style="position:absolute;width:{:.1f}%;height:100%;background:#4c72b0"></span>{}'
        "</span></div>"
    )
    return line.format(f"{row.set}, {row.figure}", row.ours, marks)


def _cells(row: Comparison) -> tuple[str, str, str, str, str]:
    ours = "–" if row.ours is None else f"{row.ours:.1f}"
    interval = "" if row.interval is None else f"{row.interval[0]:.1f}–{row.interval[1]:.1f}"
    others = ", ".join(f"{model} {value:.1f}" for model, value in row.others.items())
    return row.set, row.figure, ours, interval, others
