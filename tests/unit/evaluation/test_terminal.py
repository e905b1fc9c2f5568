"""Tables in a terminal."""

import pytest
from rich.table import Table

from multimodal.evaluation.terminal import print_table


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_no_figure_is_cut_however_narrow_the_terminal(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    table = Table(caption="a caption that is longer than the table: " + "word " * 40)
    names = [f"column {number}" for number in range(9)]
    for name in names:
        table.add_column(name, no_wrap=True)
    table.add_row(*(f"{number}00.25" for number in range(9)))
    print_table(table)
    out = capsys.readouterr().out
    assert all(name in out for name in names)
    assert all(f"{number}00.25" in out for number in range(9))
    assert "…" not in out
