"""`metrics.csv` keeps every row, through new columns, validation and resuming."""

import csv

from multimodal.training.loggers import CSVLogger


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_appended_and_new_metrics_widen_the_table(tmp_path):
    logger = CSVLogger(str(tmp_path))
    logger.log_metrics({"train/loss": 2.0, "epoch": 0}, step=10)
    logger.log_metrics({"train/loss": 1.0}, step=20)
    logger.log_metrics({"val/r@1": 0.5}, step=20)
    logger.log_metrics({"train/loss": 0.5}, step=30)
    assert rows(tmp_path) == [
        {"step": "10", "train/loss": "2.0", "val/r@1": ""},
        {"step": "20", "train/loss": "1.0", "val/r@1": "0.5"},
        {"step": "30", "train/loss": "0.5", "val/r@1": ""},
    ]


def test_a_resumed_run_keeps_earlier_rows_and_replaces_later_ones(tmp_path):
    first = CSVLogger(str(tmp_path))
    for step in (10, 20, 30):
        first.log_metrics({"train/loss": float(step)}, step=step)
    second = CSVLogger(str(tmp_path))
    second.rewind(20)
    second.log_metrics({"train/loss": 0.25}, step=30)
    assert [(r["step"], r["train/loss"]) for r in rows(tmp_path)] == [
        ("10", "10.0"),
        ("20", "20.0"),
        ("30", "0.25"),
    ]


def test_a_killed_run_has_what_it_logged(tmp_path):
    logger = CSVLogger(str(tmp_path))
    logger.log_metrics({"a": 1.0}, step=1)
    logger.log_metrics({"a": 2.0}, step=2)
    assert [r["a"] for r in rows(tmp_path)] == ["1.0", "2.0"]  # without save() or finalize()
