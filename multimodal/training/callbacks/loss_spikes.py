"""Reports loss spikes."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from multimodal.core.distributed import all_gather_object, all_reduce_sum, world_size
from multimodal.core.files import append_line, unwritable
from multimodal.objectives.host_values import HostValues
from multimodal.training.callbacks.nonfinite import describe_batch, plain


@dataclass(frozen=True)
class _Sent:
    """A batch whose loss is on its way to the host."""

    step: int
    reports: bool  # whether this rank writes
    total: HostValues
    described: dict[str, Any]


class LossSpikes(pl.Callback):
    """Writes a line to `spikes.jsonl` if the loss is far above its moving average.

    Average and variance are exponential (West 1979); the first ``warmup_steps`` steps only feed
    them. A spike does not enter them, unless it lasts longer than the window.

    Args:
        deviations: standard deviations above the average that make a spike.
        window: steps that the average looks back over.
        warmup_steps: before the first report; a loss falls fast at the beginning.
        folder: of the file; the run's.
    """

    def __init__(self, deviations: float, window: int, warmup_steps: int, folder: str) -> None:
        if deviations <= 0 or window < 1 or warmup_steps < 1:
            raise ValueError(
                f"callbacks.spikes: deviations={deviations} must be above 0, window={window} and "
                f"warmup_steps={warmup_steps} at least 1"
            )
        self.deviations = deviations
        self.window = window
        self.warmup_steps = warmup_steps
        self.path = Path(folder) / "spikes.jsonl"
        self.mean = self.variance = 0.0
        self.seen = self.spiking = 0
        self._sent: _Sent | None = None

    def state_dict(self) -> dict[str, Any]:
        """The moving average; every rank has to call it."""
        self._look()
        names = ("mean", "variance", "seen", "spiking")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it."""
        for name, value in state_dict.items():
            setattr(self, name, value)

    def update(self, loss: float) -> bool:
        """Takes a step's loss; whether it is a spike."""
        deviation = math.sqrt(self.variance)
        spike = self.seen >= self.warmup_steps and loss > self.mean + self.deviations * deviation
        self.seen += 1
        self.spiking = self.spiking + 1 if spike else 0
        if math.isfinite(loss) and (not spike or self.spiking > self.window):
            share = max(1 / self.window, 1 / self.seen)
            change = loss - self.mean
            self.mean += share * change
            self.variance = (1 - share) * (self.variance + share * change * change)
        return spike

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Looks at the loss of the batch before, and sends for this one's, of all ranks."""
        self._look()
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if loss is not None:
            total = HostValues([all_reduce_sum(torch.as_tensor(loss).detach())])
            described = describe_batch(pl_module, outputs, batch)
            self._sent = _Sent(trainer.global_step, trainer.is_global_zero, total, described)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks at the last one."""
        self._look()

    def _look(self) -> None:
        """At the loss that was sent for; on a spike writes every rank's samples and losses."""
        sent, self._sent = self._sent, None
        if sent is None:
            return
        value = sent.total.read()[0] / world_size()
        mean, deviation = self.mean, math.sqrt(self.variance)
        if not self.update(value):
            return
        ranks = all_gather_object(plain(sent.described))
        if sent.reports:
            spike = {"step": sent.step, "loss": value, "mean": mean}
            line = json.dumps({**spike, "deviation": deviation, "ranks": ranks}) + "\n"
            try:
                append_line(self.path, line.encode())
            except OSError as error:  # training goes on
                print(f"WARNING: {unwritable(self.path, error)}", file=sys.stderr)
            print(
                f"WARNING: step {sent.step}: the loss {value:.4g} is "
                f"{(value - mean) / max(deviation, 1e-12):.1f} deviations above its average "
                f"{mean:.4g}; see {self.path}",
                file=sys.stderr,
            )
