"""The table over runs: figures, intervals, marks, and runs of versions that had no intervals."""

from __future__ import annotations

import json

import pytest

from multimodal.cli.summarize import main

HEAD = ["held-out set", "task", "", "R@1 or top 1", "95 %", "not above", "R@10", "chance", "among"]


def row(top: float, interval: list[float] | None, reached: list[str]) -> dict:
    scores = {"r@1": top, "r@10": 2 * top, "chance": {"r@1": 0.01}, "gallery": 100, "trained": True}
    if interval is None:
        return scores
    return {**scores, "interval": {"r@1": interval}, "not_above": reached}


def cells(tmp_path, capsys, *rows: dict) -> list[str]:
    folders = []
    for number, each in enumerate(rows):
        folder = tmp_path / str(number)
        folder.mkdir(exist_ok=True)
        metrics = {"speech": {"split": "test", "audio_to_text": each}, "none": {"missing": {}}}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        folders.append(str(folder))
    main(folders)
    head, _, line = capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in head.strip("|").split("|")] == HEAD
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_one_run_shows_its_interval_and_what_it_reaches(tmp_path, capsys):
    assert cells(tmp_path, capsys, row(0.1, [0.05, 0.2], ["duration_only"])) == [
        "speech", "audio to text", "trained", "10.0", "5.0–20.0", "length alone", "20.0", "1.0",
        "100",
    ]  # fmt: skip


def test_several_runs_average_the_bounds_and_count_the_marks(tmp_path, capsys):
    found = cells(
        tmp_path, capsys,
        row(0.1, [0.05, 0.2], []),
        row(0.2, [0.15, 0.3], ["chance"]),
        row(0.3, [0.25, 0.4], ["chance", "duration_only"]),
    )  # fmt: skip
    assert found[3:6] == [
        "20.0 ± 10.0", "15.0–30.0", "chance (2 of 3), length alone (1 of 3)",
    ]  # fmt: skip


@pytest.mark.parametrize("others", [[], [row(0.1, [0.05, 0.2], [])]])
def test_runs_without_intervals_are_read(tmp_path, capsys, others):
    assert cells(tmp_path, capsys, row(0.1, None, []), *others)[4:6] == ["", ""]
