"""Tables of the report."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from markupsafe import Markup


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """A table of the report's style; the second column groups the rows of one value."""
    if not rows:
        return Markup("")
    cells = Markup("").join(Markup("<th>{}</th>").format(word) for word in head)
    bodies = []
    for _, group in groupby(rows, key=lambda row: row[1]):
        lines = Markup("").join(
            Markup("<tr><th>{}</th>{}</tr>").format(
                row[0], Markup("").join(Markup("<td>{}</td>").format(cell) for cell in row[1:])
            )
            for row in group
        )
        bodies.append(Markup("<tbody>{}</tbody>").format(lines))
    return Markup(
        '<div class="scroll" tabindex="0"><table class="results plain"><thead><tr>{}</tr></thead>'
        "{}</table></div>"
    ).format(cells, Markup("").join(bodies))
