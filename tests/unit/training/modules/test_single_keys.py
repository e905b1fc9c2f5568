"""Batches without negatives are said, and do not look like success."""

from types import SimpleNamespace

import numpy as np
import torch
from data_helpers import image_bytes, json_bytes, npy_bytes, write_source
from experiment_helpers import losses, train_here

from multimodal.core.similarity.similarities import Cosine
from multimodal.objectives.matches import SampleKeys
from multimodal.objectives.pair_metrics import similarity_metrics
from multimodal.training.modules.single_keys import SingleKeyWarning


def write_alike(folder):
    """Samples of one class, as of a label that was meant to be a name."""
    random = np.random.default_rng(0)

    def samples(split: str, count: int):
        return [
            (
                f"{split}{number}",
                {
                    "json": json_bytes(kind="photo"),
                    "reading.npy": npy_bytes(random.standard_normal(12).astype(np.float32)),
                    "view.png": image_bytes(random.integers(0, 256, (16, 16, 3), np.uint8)),
                },
            )
            for number in range(count)
        ]

    splits = {"train": [samples("a", 40)], "val": [samples("b", 10)]}
    write_source(folder, splits, name="measured")
    return folder


def test_a_source_of_one_key_is_warned_of_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SENSOR_SHARDS", str(write_alike(tmp_path / "shards")))
    words = ["data.num_workers=0", "data.batch_size=10", "trainer.max_steps=4", "~evaluation"]
    words += ["+data.sources.measured.positive_key=kind", "trainer.log_every_n_steps=2"]
    train_here(tmp_path / "run", *words)
    shown = capsys.readouterr().err
    assert shown.count("in which all samples have the same positive key") == 1
    assert "pair 'image_sensor' had 2 batches (the last of source 'measured')" in shown
    assert all(float(loss) == 0 for loss in losses(tmp_path / "run").values())


def test_other_batches_are_not(capsys):
    warning = SingleKeyWarning()
    metrics = {"without_negatives/p": torch.tensor(2.0), "loss/p": torch.tensor(0.0)}
    warning.note(SimpleNamespace(positive_keys=torch.tensor([1, 1, 2]), source="s"), metrics)
    none = {"without_negatives/p": torch.tensor(0.0)}  # a queue holds some
    warning.note(SimpleNamespace(positive_keys=torch.tensor([1, 1]), source="s"), none)
    warning.report()
    assert capsys.readouterr().err == ""


def test_anchors_without_a_negative_are_not_right():
    rows, keys = torch.nn.functional.normalize(torch.randn(4, 3), dim=1), torch.tensor([1, 1, 1, 1])
    for positive, expected in ((keys, 0.0), (torch.arange(4), 1.0)):
        batch = SampleKeys(torch.arange(4), positive)
        found = similarity_metrics(rows, rows, batch, slice(0, 4), True, Cosine().between("a", "b"))
        assert found["accuracy"].item() == expected
