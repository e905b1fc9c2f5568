"""A model card says what is in the run's folder, and what is not there."""

import json
import re
import shutil
from pathlib import Path

import pytest
from experiment_helpers import run_command

from multimodal.cli.weights.card import main
from multimodal.inference.checkpoint.load import load_checkpoint
from multimodal.inference.export.card import card, measured_table, run_of

ROOT = Path(__file__).parents[4]
STORED = ROOT / "tests" / "vectors" / "release_0_1"
METRICS = {
    "unseen": {
        "split": "test", "samples": 16,
        "image_to_sensor": {
            "r@1": 0.25, "chance": {"r@1": 0.0625}, "interval": {"r@1": [0.1, 0.5]},
            "not_above": [], "trained": True,
        },
        "sensor_to_image": {
            "r@1": 0.0625, "chance": {"r@1": 0.0625}, "interval": {"r@1": [0.0, 0.2]},
            "not_above": ["chance"], "trained": False,
        },
        "missing": {"audio": "the model has no tower for it"},
    }
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """A run's folder with an evaluation and one start."""
    folder = tmp_path / "mine"
    shutil.copytree(STORED / "contrastive", folder)
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    start = {
        "started": "2026-01-01T00:00:00+00:00", "python": "3.11", "packages": {"torch": "2.13"},
        "code": {"version": "0.1.0", "commit": "abcdef0123456789"},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps([start]))
    return folder


def card_of(folder: Path) -> tuple[str, object]:
    (checkpoint,) = (folder / "checkpoints").glob("*.ckpt")
    model, cfg, _ = load_checkpoint(checkpoint)
    return card(run_of(cfg, model, 4, checkpoint)), model


def test_towers_and_their_parameters(run):
    text, model = card_of(run)
    for name in model.towers:
        count = sum(parameter.numel() for parameter in model.tower(name).parameters())
        assert re.search(rf"^\| {name} \| \w+ \| {count:,} \|", text, re.M)


def test_figures_stand_with_chance_and_interval(run):
    text, _ = card_of(run)
    row = "| unseen | image_to_sensor | r@1 | 0.250 | 0.100 to 0.500 | 0.062 | trained |"
    assert row in text
    assert "0.000 to 0.200 | 0.062 | emergent |" in text


def test_limits_name_what_is_not_above_chance_and_what_was_not_scored(run):
    limits = card_of(run)[0].partition("## Limits")[2]
    assert "chance or a trivial answer: unseen sensor_to_image (r@1)." in limits
    assert "unseen audio (the model has no tower for it)" in limits
    assert "image_to_sensor" not in limits.partition("## Configuration")[0]


def test_training_cost(run):
    training = card_of(run)[0].partition("## Training")[2].partition("## Evaluation")[0]
    assert "- steps: 4\n" in training
    assert re.search(r"wall time to this checkpoint: [\d,]+\.\d min", training)
    assert "commit abcdef012345; torch 2.13; Python 3.11" in training


def test_what_is_not_there_is_said(run):
    (run / "metrics.json").unlink()
    (run / "run.json").write_text("damaged")
    text, _ = card_of(run)
    assert "Not evaluated: the run's folder has no `metrics.json`." in text
    assert "wall time" not in text
    assert "Not measured." in text


def test_licences_of_the_sources(run, tmp_path):
    (checkpoint,) = (run / "checkpoints").glob("*.ckpt")
    model, cfg, _ = load_checkpoint(checkpoint)
    cfg.data.sources = {"voices": {"manifest": "samples://speech.json", "split": "train"}}
    text = card(run_of(cfg, model, 4, checkpoint))
    data = text.partition("## Data")[2].partition("## Training")[0]
    assert "Twemoji, Twitter and other contributors" in data
    assert "CC-BY-4.0" in data
    cfg.data.sources.voices.manifest = str(tmp_path / "gone.json")
    assert "its manifest cannot be read here" in card(run_of(cfg, model, 4, checkpoint))


def test_a_table_of_measurements():
    assert measured_table([{"what": "fp32", "MB": 1.5}, {"what": "int8", "MB": 0.4}]) == [
        "| what | MB |", "|---|---|", "| fp32 | 1.5 |", "| int8 | 0.4 |",
    ]  # fmt: skip
    assert measured_table([]) == []


def test_the_command_writes_it_to_a_file(run, tmp_path, capsys):
    main([str(run), "--output", str(tmp_path / "README.md")])
    assert (tmp_path / "README.md").read_text() == card_of(run)[0]
    assert capsys.readouterr().out == f"written: {tmp_path / 'README.md'}\n"


def test_the_command_prints_it_and_refuses_what_is_no_run(run, tmp_path):
    done = run_command("card", str(run))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("---\nlibrary_name: multimodal\n")
    done = run_command("card", str(tmp_path / "gone"))
    assert done.returncode == 2
    assert "no checkpoint at" in done.stderr
    assert len(done.stderr.splitlines()) == 1
