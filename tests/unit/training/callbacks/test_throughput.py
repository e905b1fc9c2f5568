"""Samples per second, peak memory and MFU in the log."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from multimodal.training.callbacks import throughput
from multimodal.training.callbacks.throughput import Throughput


class Module(nn.Module):
    """A module of one trained and one frozen matrix, as Lightning's has its step."""

    def __init__(self) -> None:
        super().__init__()
        self.host_metrics: dict[str, float] = {}
        self.frozen, self.trained = nn.Linear(4, 4), nn.Linear(4, 8, bias=False)
        self.frozen.requires_grad_(False)

    def training_step(self, batch, batch_idx):
        return self.trained(self.frozen(batch.inputs)).sum()


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = SimpleNamespace(time=100.0)
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now.time)
    return now


class Samples(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.inputs)


def run(clock, peak_tflops, seconds):
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    trainer = SimpleNamespace(
        global_step=0, log_every_n_steps=2, precision="32-true", strategy=strategy
    )
    module, callback = Module(), Throughput(peak_tflops)
    callback.on_train_start(trainer, module)
    batch = Samples(inputs=torch.ones(5, 4), source="vectors")
    logged = []
    for pause in seconds:
        clock.time += pause
        module.training_step(batch, 0)
        trainer.global_step += 1
        callback.on_train_batch_end(trainer, module, None, batch, 0)
        logged.append(dict(module.host_metrics))
        if pause == 7.0:
            callback.on_validation_start(trainer, module)
    return logged


def test_samples_since_the_last_logged_step_without_validation(clock):
    logged = run(clock, None, [50.0, 2.0, 1.0, 4.0, 7.0, 90.0, 3.0, 2.0])
    assert logged[0] == {}  # the first batch includes the start of the run
    assert logged[1]["train/samples_per_s"] == pytest.approx(5 / 2)
    assert logged[3]["train/samples_per_s"] == pytest.approx(10 / 5)
    assert logged[5]["train/samples_per_s"] == pytest.approx(5 / 7)  # 90 s were a validation
    assert logged[7]["train/samples_per_s"] == pytest.approx(10 / 5)
    assert logged[1]["train/peak_memory_mb"] > 10
    assert "train/mfu" not in logged[7]  # of a CPU no peak is known


def test_utilisation_counts_a_backward_only_of_what_is_trained(clock):
    peak = 1e-9  # TFLOP/s, so 1000 a second
    logged = run(clock, peak, [50.0, 2.0])
    forward = 2 * 4 * 4 + 2 * 4 * 8  # of a sample
    flops = forward * (1 + 2 * 32 / (16 + 32))
    assert logged[1]["train/mfu"] == pytest.approx(5 * flops / 2 / 1000)


def test_a_peak_must_be_above_zero():
    with pytest.raises(ValueError, match=r"peak_tflops=0 must be above 0"):
        Throughput(0)
