"""What a training step waits for: on a CPU, the reads that would make the host wait for a GPU."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from experiment_helpers import train_here, write_sensor_shards
from objective_cases import batch, one_pair_objective
from synchronisations import Synchronisations

from multimodal.cli import train as training
from multimodal.objectives.host_values import HostValues
from multimodal.objectives.losses.sigmoid import SigLIP
from multimodal.objectives.losses.softmax import DCL, InfoNCE
from multimodal.objectives.negatives.selection import InBatch
from multimodal.training.callbacks.nonfinite import SkipNonFinite

# Numbers that were sent for before the towers, or a step earlier; and whether the optimizer may
# take the step, which nobody knows before the backward: read where the host decides it.
SENT, DECIDED = "host_values:read", "nonfinite:on_before_optimizer_step"


class Counting(pl.Callback):
    """Keeps what every step read, and what torch searched on the host."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[dict[str, int]] = []
        self.searches: Counter[str] = Counter()
        self.searched: list[dict[str, int]] = []
        for name in ("named_modules", "__setattr__"):
            original = getattr(torch.nn.Module, name)
            monkeypatch.setattr(torch.nn.Module, name, self._counted(name, original))

    def _counted(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def counted(module: torch.nn.Module, *given: Any, **named: Any) -> Any:
            attribute = f" {given[0]}" if name == "__setattr__" else ""
            self.searches[f"{name}{attribute}"] += 1
            return original(module, *given, **named)

        return counted

    def on_train_batch_start(self, *_: object) -> None:
        self.searches.clear()
        self.counts = Synchronisations()
        self.counts.__enter__()

    def on_train_batch_end(self, *_: object) -> None:
        self.counts.__exit__(None, None, None)
        self.steps.append(dict(self.counts.where))
        self.searched.append(dict(self.searches))


@pytest.mark.parametrize("kernel", [False, True], ids=["by the host", "by the kernel"])
def test_a_step_reads_what_has_arrived_and_one_decision(tmp_path, monkeypatch, kernel):
    """A kernel that decides whether a step is taken, as on a GPU, leaves nothing to wait for."""
    monkeypatch.setattr(SkipNonFinite, "decided_on", ("cpu",) if kernel else ())
    counting, build_trainer = Counting(monkeypatch), training.build_trainer

    def with_counting(*args: object, **kwargs: object) -> pl.Trainer:
        trainer = build_trainer(*args, **kwargs)
        trainer.callbacks.append(counting)
        return trainer

    monkeypatch.setattr(training, "build_trainer", with_counting)
    monkeypatch.setitem(os.environ, "SENSOR_SHARDS", str(write_sensor_shards(tmp_path / "s")))
    torch.set_num_threads(1)
    words = ("~evaluation", "trainer.max_steps=4", "trainer.log_every_n_steps=100")
    train_here(tmp_path / "run", *words)
    decided = {} if kernel else {DECIDED: 1}
    assert counting.steps == [
        {SENT: 1, **decided},  # of the loss
        *[{SENT: 3 if kernel else 2, **decided}] * 3,  # and of the step before: for spikes, skipped
    ]
    # The host, which a fast GPU would wait for, searches no modules for towers and parameters, and
    # none for the attribute in which Lightning notes each hook.
    for searched in counting.searched:
        assert not {"named_modules", "__setattr__ _current_fx_name"} & searched.keys()


def test_the_loss_asks_before_the_towers_compute():
    """What is sent is all that the loss reads."""
    data = batch(3, 12, repeated="keys")
    for loss in (InfoNCE(), DCL(), SigLIP()):
        objective = one_pair_objective(loss, InBatch())
        keys = data.sample_ids, data.positive_keys
        prepared = objective.prepare(["image", "text"], "s", *keys)
        prepared._values.read()
        with Synchronisations() as counts:
            objective(data.embeddings(), *keys, 2, 1, "s", prepared=prepared)
        # Positives beside the diagonal have to be listed: equal keys cost a read.
        assert set(counts.where) == {"matches:index_positives"}
        distinct = batch(3, 12)
        keys = distinct.sample_ids, distinct.positive_keys
        prepared = objective.prepare(["image", "text"], "s", *keys)
        prepared._values.read()
        with Synchronisations() as counts:
            objective(distinct.embeddings(), *keys, 2, 1, "s", prepared=prepared).loss.backward()
        assert not counts.where


@pytest.mark.parametrize("scale", [5.0, 90.0])  # summed up directly, and not
@pytest.mark.parametrize("loss", [InfoNCE(), DCL(), SigLIP()])
def test_the_loss_is_the_same_prepared_or_not(loss: object, scale: float):
    for repeated in ("nothing", "keys", "most keys"):
        data = batch(5, 20, repeated=repeated)
        objective = one_pair_objective(loss, InBatch(), logit_scale={"init": scale})
        keys = data.sample_ids, data.positive_keys
        prepared = objective.prepare(["image", "text"], "s", *keys)
        assert prepared.on_host("image_text")[0] == pytest.approx(scale)
        one = objective(data.embeddings(), *keys, 2, 1, "s")
        other = objective(data.embeddings(), *keys, 2, 1, "s", prepared=prepared)
        torch.testing.assert_close(other.loss, one.loss, rtol=1e-12, atol=1e-12)


def test_of_no_active_pair_nothing_is_sent():
    objective = one_pair_objective(InfoNCE(), InBatch())
    assert objective.prepare(["image"], "s", torch.arange(3), torch.arange(3)) is None


def test_numbers_arrive_in_order():
    values = HostValues([torch.tensor(3), torch.tensor(0.5), torch.tensor(True)])
    assert values.read() == [3.0, 0.5, 1.0]
