"""Parts of the report, each a title and a piece of HTML; what an outcome says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from multimodal.evaluation.results import Results


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the report.

    Attributes:
        anchor: its id in the page.
        title: heading, and its word in the navigation.
        body: HTML.
        intro: a sentence or two under the heading.
        place: parts with a smaller one come first.
    """

    anchor: str
    title: str
    body: Markup
    intro: str = ""
    place: int = 50


def sections_of(results: Results) -> list[Section]:
    """The parts that the outcomes give, one for each kind that has its own."""
    sections = (kind.section(results.of(kind)) for kind in results.kinds())
    return sorted(
        (section for section in sections if section is not None), key=lambda each: each.place
    )
