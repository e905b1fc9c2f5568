from __future__ import annotations

from types import SimpleNamespace

import pytest

from multimodal.training.callbacks import data_wait
from multimodal.training.callbacks.data_wait import DataWait


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = SimpleNamespace(time=100.0)
    monkeypatch.setattr(data_wait.time, "perf_counter", lambda: now.time)
    return now


def steps(clock, callback, trainer, module, times):
    for wait, work in times:
        clock.time += wait
        callback.on_train_batch_start(trainer, module, None, 0)
        clock.time += work
        trainer.global_step += 1
        callback.on_train_batch_end(trainer, module, None, None, 0)


def test_the_share_of_waiting_since_the_last_logged_step(clock):
    trainer = SimpleNamespace(global_step=0, log_every_n_steps=2, loggers=[])
    module = SimpleNamespace(host_metrics={})
    callback = DataWait()
    steps(clock, callback, trainer, module, [(50, 1)])  # the first wait is the start of the run
    assert module.host_metrics == {}
    steps(clock, callback, trainer, module, [(1, 2)])
    assert module.host_metrics["train/data_wait"] == pytest.approx(1 / 4)
    steps(clock, callback, trainer, module, [(3, 1), (0, 4)])
    assert module.host_metrics["train/data_wait"] == pytest.approx(3 / 8)
    clock.time += 70
    callback.on_validation_end(trainer, module)
    steps(clock, callback, trainer, module, [(9, 1), (1, 2)])
    assert module.host_metrics["train/data_wait"] == pytest.approx(1 / 4)


def test_other_modules_have_it_logged_for_them(clock):
    logged = []
    logger = SimpleNamespace(log_metrics=lambda values, step: logged.append((values, step)))
    trainer = SimpleNamespace(global_step=0, log_every_n_steps=1, loggers=[logger])
    steps(clock, DataWait(), trainer, SimpleNamespace(), [(0, 1)])
    assert logged == [({"train/data_wait": 0.0}, 1)]
