"""Early stopping, the best checkpoint, and what is said before and after."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from experiment_helpers import train_here, write_sensor_shards

from multimodal.config import ConfigError
from multimodal.inference.checkpoint import store
from multimodal.inference.checkpoint.locate import checkpoint_at
from multimodal.training.callbacks.stopping.early_stopping import EarlyStopping
from multimodal.training.callbacks.summary import modalities_table


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_sensor_shards(tmp_path_factory.mktemp("shards"))


WORDS = ("trainer.val_check_interval=2", "callbacks.checkpoint.every_n_train_steps=100",
         "~evaluation", "callbacks=early_stopping",
         "callbacks.early_stopping.patience=2")  # fmt: skip


def test_a_run_that_gets_no_better_stops_and_keeps_its_best(shards, tmp_path, monkeypatch, capsys):
    """With a rate of 0 the first validation stays the best one."""
    monkeypatch.setenv("SENSOR_SHARDS", str(shards))
    train_here(tmp_path, *WORDS, "trainer.max_steps=40", "optimizer.lr=0")
    there = store.steps(tmp_path / "checkpoints")
    assert max(there) == 6  # validated at 2, 4 and 6
    shown = capsys.readouterr()
    assert "early stopping at step 6: val/score has not been better than" in shown.err
    scores = json.loads((tmp_path / "checkpoints" / "scores.json").read_text())
    best = max(scores["scores"], key=lambda step: (scores["scores"][step], int(step)))
    assert checkpoint_at(tmp_path) == there[int(best)]
    assert f"best checkpoint: {there[int(best)]} (val/score" in shown.out


@pytest.mark.heavy
def test_the_best_is_kept_by_default_and_found_in_the_run(shards, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SENSOR_SHARDS", str(shards))
    train_here(
        tmp_path, "trainer.max_steps=12", "trainer.val_check_interval=2", "~evaluation",
        "callbacks.checkpoint.keep_last=1", "callbacks.checkpoint.every_n_train_steps=100",
    )  # fmt: skip
    header, *rows = (tmp_path / "metrics.csv").read_text().splitlines()
    place = header.split(",").index("val/score")
    score = {int(r.split(",")[0]): float(r.split(",")[place]) for r in rows if r.split(",")[place]}
    assert sorted(score) == [2, 4, 6, 8, 10, 12]
    best = max(score, key=lambda step: (score[step], step))
    there = store.steps(tmp_path / "checkpoints")
    assert sorted(there) == sorted({best, 12})
    assert checkpoint_at(tmp_path) == there[best]
    shown = capsys.readouterr().out
    for expected in ("ConvolutionalEncoder", "training", "validation", "12 steps", "160", "48"):
        assert expected in shown
    assert shown.index("12 steps") < shown.index("best checkpoint:")
    assert re.search(r"modality +training samples +validation samples +of sources", shown)
    assert re.search(r"sensor +160 +48 +measured", shown)


def test_a_modality_that_samples_may_lack_is_counted_as_such():
    def source(count, **optional):
        decoder = SimpleNamespace(is_optional=lambda name: optional[name])
        return Sized(count, tuple(optional), decoder)

    data = SimpleNamespace(
        sources={"a": source(1000, image=False, audio=True), "b": source(20, image=False),
                 "stream": source(None, image=False)},
        val_sources=None,
    )  # fmt: skip
    columns = modalities_table(data).columns
    assert list(columns[0].cells) == ["image", "audio"]
    assert list(columns[1].cells) == ["1,020 and a stream", "at most 1,000"]
    assert list(columns[2].cells) == ["0", "0"]
    assert list(columns[3].cells) == ["a, b, stream", "a"]


class Sized:
    """A source, as the summary looks at it."""

    def __init__(self, count, modalities, decoder):
        self.count, self.modalities, self.decoder = count, modalities, decoder

    def __len__(self):
        if self.count is None:
            raise TypeError("a stream")
        return self.count


@pytest.mark.parametrize("off", ["data.val_sources=null", "trainer.limit_val_batches=0"])
def test_it_needs_a_validation(shards, tmp_path, monkeypatch, off):
    monkeypatch.setenv("SENSOR_SHARDS", str(shards))
    with pytest.raises(ValueError, match=r"early_stopping needs a validation: give data\.val_so"):
        train_here(tmp_path, *WORDS, "trainer.max_steps=4", off)


class Validations:
    """A trainer that only validates."""

    def __init__(self, callback: EarlyStopping) -> None:
        self.callback = callback
        self.trainer = SimpleNamespace(
            sanity_checking=False, state=SimpleNamespace(fn="fit"), callback_metrics={},
            global_step=0, should_stop=False,
            strategy=SimpleNamespace(reduce_boolean_decision=lambda stop, all: stop),
        )  # fmt: skip

    def run(self, *scores: float) -> int | None:
        """The number of validations after which it stops; None if it goes on."""
        for score in scores:
            self.trainer.global_step += 1
            self.trainer.callback_metrics = {"val/score": torch.tensor(score)}
            module = SimpleNamespace(device=torch.device("cpu"))
            self.callback.on_validation_end(self.trainer, module)  # type: ignore[arg-type]
            if self.trainer.should_stop:
                return self.trainer.global_step
        return None


@pytest.mark.parametrize(
    ("options", "scores", "stops"),
    [
        ({"patience": 2}, [0.1, 0.2, 0.2, 0.3, 0.3, 0.1], 6),
        ({"patience": 2}, [0.1, 0.2, 0.3, 0.2, 0.4], None),
        ({"patience": 1, "mode": "min"}, [3.0, 2.0, 2.5], 3),
        ({"patience": 2, "min_delta": 0.1}, [0.1, 0.15, 0.19], 3),
        ({"patience": 2}, [float("nan"), 0.1, 0.2, float("nan"), 0.2], 5),
    ],
)
def test_when_it_stops(options, scores, stops):
    assert Validations(EarlyStopping(**options)).run(*scores) == stops


def test_its_count_survives_a_resume():
    first, second = EarlyStopping(patience=2), EarlyStopping(patience=2)
    assert Validations(first).run(0.3, 0.2) is None
    second.load_state_dict(first.state_dict())
    assert Validations(second).run(0.3) == 1


def test_wrong_options_and_metrics_are_refused():
    with pytest.raises(ValueError, match=r"early_stopping\.patience=0"):
        EarlyStopping(patience=0)
    with pytest.raises(ValueError, match=r"early_stopping\.min_delta=-1"):
        EarlyStopping(min_delta=-1)
    with pytest.raises(ConfigError, match=r"'val/los', which .* did you mean 'val/score'\?"):
        Validations(EarlyStopping(monitor="val/los")).run(0.1)
