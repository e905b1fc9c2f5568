"""Further parts of the report, each a title and a piece of HTML: tasks, maps, probes, diagnostics.

A part that other code adds (`Page.sections`) is one more `Section`; nothing here knows of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from multimodal.evaluation.report.charts import line_chart
from multimodal.evaluation.report.map import draw_map
from multimodal.evaluation.report.tables import table
from multimodal.evaluation.report.tasks import INTRO, tasks_body
from multimodal.evaluation.results import Diagnostics, ProbeResult, Results


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the report.

    Attributes:
        anchor: its id in the page.
        title: heading, and its word in the navigation.
        body: HTML.
        intro: a sentence or two under the heading.
    """

    anchor: str
    title: str
    body: Markup
    intro: str = ""


def sections_of(results: Results) -> list[Section]:
    """The parts that the results give; those without content are left out."""
    found = []
    if results.tasks:
        found.append(Section("tasks", "Tasks", tasks_body(results.tasks), INTRO))
    if results.maps:
        body = Markup('<div class="grid wide">{}</div>').format(
            Markup("").join(draw_map(each) for each in results.maps)
        )
        found.append(Section("map", "Map", body, MAP))
    if results.probes:
        found.append(Section("probes", "Probes", _probes(results.probes), PROBES))
    if results.diagnostics:
        found.append(Section("space", "Space", _diagnostics(results.diagnostics), SPACE))
    return found


MAP = (
    "Every point is one input. Near points are near in the embedding space (t-SNE: distances "
    "between far groups mean little). Where modalities are aligned they mix, and classes gather."
)
PROBES = (
    "Simple classifiers on frozen embeddings: a linear one, a vote of the nearest neighbours, and "
    "a linear one that has seen only a few samples of each class."
)
SPACE = (
    "Alignment: mean squared distance of the two embeddings of a sample (0 is best). Gap: distance "
    "between the modalities' means. Uniformity: how evenly the sphere is used (lower is more "
    "even). Effective rank: dimensions that are really used. Temperature: of the pair in training."
)


def _probes(probes: Sequence[ProbeResult]) -> Markup:
    rows = [
        (
            f"{each.modality} → {each.label}",
            each.set,
            _percent(each.scores.linear.top1),
            _percent(each.scores.linear.mean_per_class),
            f"{_percent(each.scores.neighbours.top1)}",
            _percent(each.scores.chance),
            f"{each.scores.classes}",
            f"{each.scores.train:,}",
            f"{each.scores.test:,}",
        )
        for each in probes
    ]
    head = (
        "probe", "set", "linear top 1 %", "mean per class", "neighbours", "chance", "classes",
        "train", "test",
    )  # fmt: skip
    charts = [
        Markup(
            '<figure class="panel"><figcaption><b>{}</b> {} · top 1 % by samples per class'
            '</figcaption>{}<p class="muted">{}</p></figure>'
        ).format(
            f"{each.modality} → {each.label}",
            each.set,
            line_chart(
                f"{each.modality} {each.label} few-shot",
                {"top 1": [(few.shots, 100 * few.mean) for few in each.scores.few_shot]},
            ),
            " · ".join(
                f"{few.shots}: {_percent(few.mean)} ± {_percent(few.deviation)}"
                for few in each.scores.few_shot
            ),
        )
        for each in probes
        if each.scores.few_shot
    ]
    return table(head, rows) + Markup('<div class="grid">{}</div>').format(Markup("").join(charts))


def _diagnostics(every: Sequence[Diagnostics]) -> Markup:
    pairs = [
        (
            f"{a} · {b}",
            each.set,
            f"{pair.alignment:.3f}",
            f"{pair.gap:.3f}",
            "–" if pair.temperature is None else f"{pair.temperature:.4g}",
        )
        for each in every
        for (a, b), pair in each.pairs.items()
    ]
    spaces = [
        (name, each.set, f"{space.uniformity:.3f}", f"{space.effective_rank:.1f}")
        for each in every
        for name, space in each.spaces.items()
    ]
    return table(("pair", "set", "alignment", "gap", "temperature"), pairs) + table(
        ("modality", "set", "uniformity", "effective rank"), spaces
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"
