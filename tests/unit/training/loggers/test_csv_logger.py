"""`metrics.csv` keeps every row, through new columns, validation and resuming."""

import csv
import resource

from multimodal.training.loggers.csv import CSVLogger


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


def test_rows_that_a_full_disk_refuses_are_written_when_it_takes_them(tmp_path, capsys):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    logger = CSVLogger(str(tmp_path))
    logger.log_metrics({"a": 1.0}, step=1)
    text = (tmp_path / "metrics.csv").read_text()
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(text) + 3, before[1]))
    try:
        for step in (2, 3):
            logger.log_metrics({"a": float(step)}, step=step)
            assert (tmp_path / "metrics.csv").read_text() == text  # no row in part
        logger.log_metrics({"b": 0.5}, step=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert capsys.readouterr().err.count("WARNING: cannot write") == 1
    logger.log_metrics({"a": 4.0}, step=4)
    assert [(r["step"], r["a"], r["b"]) for r in rows(tmp_path)] == [
        ("1", "1.0", ""), ("2", "2.0", ""), ("3", "3.0", "0.5"), ("4", "4.0", ""),
    ]  # fmt: skip
