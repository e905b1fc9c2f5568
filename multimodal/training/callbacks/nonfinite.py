"""Skips non-finite steps; aborts after too many in a row."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from multimodal.core.distributed import all_gather_object, all_reduce_sum
from multimodal.core.errors import UserError
from multimodal.core.files import WriteError, write_text
from multimodal.objectives.host_values import HostValues
from multimodal.training.modules.base import TrainingModule
from multimodal.training.optim import total_norm


class NonFiniteError(UserError, RuntimeError):
    """Too many steps in a row had a loss or a gradient that is not finite."""


@dataclass
class _Verdict:
    """On a step that was taken before the host knew it.

    Attributes:
        values: how many ranks had a loss, and a gradient, that is not finite.
        step: its number.
        speaks: whether this rank says so.
        batches: its own, once they are described.
    """

    values: HostValues
    step: int
    speaks: bool
    batches: list[dict[str, Any]] | None = None


class SkipNonFinite(pl.Callback):
    """Skips the step on all ranks if the loss or a gradient of any rank is not finite.

    The step is skipped by removing all gradients: an optimizer does not change parameters without a
    gradient, or its state for them. Where its kernel can decide on a GPU (AdamW, Adam, SGD and
    Adagrad, fused), it does, as for a gradient scaler: the host does not wait for the backward, and
    reads what became of a step during the next. The step still counts, so that the run's place in
    its data and its schedule remain functions of the step.

    Args:
        max_nonfinite: steps in a row after which the run ends with an error. The batches' sample
            keys and the metrics of every rank are then in `nonfinite.json` in ``folder``.
        folder: for the report; the run's.
    """

    decided_on = ("cuda",)  # kinds of devices whose kernels decide

    def __init__(self, max_nonfinite: int, folder: str) -> None:
        if max_nonfinite < 1:
            raise ValueError(
                f"callbacks.nonfinite.max_nonfinite={max_nonfinite} must be at least 1"
            )
        self.max_nonfinite = max_nonfinite
        self.folder = Path(folder)
        self.consecutive = 0
        self.skipped = 0
        self._bad: Tensor | None = None  # 0, or NaN if a loss since the last step was not finite
        self._step_skipped = False
        self._verdict: _Verdict | None = None
        self._last: tuple[int, list[dict[str, Any]]] | None = None  # of too many in a row
        self._batches: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        """How many steps were skipped, consecutively and in total."""
        self._settle()
        return {"in_a_row": self.consecutive, "skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the counts."""
        self.consecutive, self.skipped = state_dict["in_a_row"], state_dict["skipped"]

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        """Notes on the device whether the loss is finite."""
        bad = loss.detach() - loss.detach()  # fewer kernels than isfinite
        self._bad = bad if self._bad is None else self._bad + bad

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Removes the gradients if any rank's loss or gradient is not finite.

        Raises nothing here: gradient scalers still have to see the step.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        bad_loss = self._bad if self._bad is not None else torch.zeros(())
        self._bad = None
        norm = total_norm(gradients) if gradients else torch.zeros(())
        if isinstance(pl_module, TrainingModule):
            pl_module.gradient_norm = norm  # clipping, which comes next, needs it too
        bad = torch.stack([bad_loss.float(), (norm - norm).float().to(bad_loss.device)])
        counts = all_reduce_sum((bad != 0).float())
        # A gradient scaler of float16 finds its scale by trial: that alone is not an error.
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        step, speaks = trainer.global_step + 1, trainer.is_global_zero
        if not scaled and self._decides(optimizer, pl_module, counts.device):
            self._settle()
            optimizer.found_inf = counts.sum().clamp(max=1.0)  # type: ignore[attr-defined]
            self._verdict = _Verdict(HostValues(counts.unbind()), step, speaks)
            return
        losses, gradients_bad = counts.tolist()
        if losses or gradients_bad:
            optimizer.zero_grad(set_to_none=True)
        self._count(losses, gradients_bad, step, scaled, speaks)

    def _decides(
        self, optimizer: Optimizer, pl_module: pl.LightningModule, device: torch.device
    ) -> bool:
        """Whether the optimizer's kernel may leave the step out, and nobody asks if it did."""
        able = getattr(optimizer, "_step_supports_amp_scaling", False)
        fused = able and all(group.get("fused") for group in optimizer.param_groups)
        asked = not isinstance(pl_module, TrainingModule) or pl_module.asks_if_applied
        return fused and not asked and device.type in self.decided_on

    def _settle(self) -> None:
        """Counts the step that the host has not judged yet."""
        verdict, self._verdict = self._verdict, None
        if verdict is not None:
            losses, gradients = verdict.values.read()
            self._count(losses, gradients, verdict.step, scaled=False, speaks=verdict.speaks)
            if self._step_skipped and self.consecutive >= self.max_nonfinite:
                self._last = verdict.step, verdict.batches or []

    def _count(
        self, losses: float, gradients: float, step: int, scaled: bool, speaks: bool
    ) -> None:
        """Counts a step by the ranks whose loss, and gradients, were not finite."""
        self._step_skipped = bool(losses or gradients)
        if not self._step_skipped:
            self.consecutive = 0
            return
        self.skipped += 1
        self.consecutive += 1 if losses or not scaled else 0
        if speaks and (losses or not scaled):
            what = f"the loss of {int(losses)} ranks" if losses else "a gradient"
            print(
                f"WARNING: step {step}: {what} is not finite; the step is not applied "
                f"({self.consecutive} of at most {self.max_nonfinite} in a row)",
                file=sys.stderr,
            )

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Ends the run after too many in a row, with a report.

        Raises:
            NonFiniteError: on all ranks.
        """
        self._end_if_too_many(trainer)
        self._batches.append(describe_batch(pl_module, outputs, batch))
        del self._batches[: -trainer.accumulate_grad_batches]
        if self._verdict is not None:
            self._verdict.batches = self._verdict.batches or list(self._batches)
        elif self._step_skipped and self.consecutive >= self.max_nonfinite:
            self._last = trainer.global_step, self._batches
            self._end_if_too_many(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Judges the last step.

        Raises:
            NonFiniteError: on all ranks.
        """
        self._settle()
        self._end_if_too_many(trainer)

    def _end_if_too_many(self, trainer: pl.Trainer) -> None:
        if self._last is None:
            return
        (step, batches), self._last = self._last, None
        ranks = all_gather_object([plain(each) for each in batches])
        path = self.folder / "nonfinite.json"
        if trainer.is_global_zero:
            report = {"step": step, "in_a_row": self.consecutive, "ranks": ranks}
            try:
                write_text(path, json.dumps(report, indent=1) + "\n")
            except WriteError as error:  # the reason for the end is the other one
                print(f"WARNING: {error}", file=sys.stderr)
        raise NonFiniteError(
            f"{self.consecutive} steps in a row, up to step {step}, had a loss or a "
            "gradient that is not finite. None of them was applied. The samples and losses of the "
            f"last are in {path}; a lower optimizer.lr, or trainer.precision=32-true, may help"
        )


def describe_batch(pl_module: pl.LightningModule, outputs: Any, batch: Any) -> dict[str, Any]:
    """The samples of a batch and its scalars, which stay on the device until `plain` reads them."""
    loss = outputs["loss"] if isinstance(outputs, dict) else outputs
    return {
        "source": getattr(batch, "source", None),
        "keys": list(getattr(batch, "keys", [])),
        "loss": loss,
        "metrics": dict(getattr(pl_module, "step_metrics", {})),
    }


def plain(described: Mapping[str, Any]) -> dict[str, Any]:
    """`describe_batch` with numbers, for JSON; strings for numbers that are not finite."""
    numbers = {name: _plain(value) for name, value in described["metrics"].items()}
    return {**described, "loss": _plain(described["loss"]), "metrics": numbers}


def _plain(value: Any) -> float | str | None:
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) else str(number)
