"""Samples per second, peak memory and model FLOPs utilisation, in the log."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import pytorch_lightning as pl
import torch

from multimodal.core.distributed import world_size
from multimodal.training.flops import Arithmetic, count_flops, peak_flops


class Throughput(pl.Callback):
    """Logs ``train/samples_per_s``, ``train/peak_memory_mb`` and, where it is known, ``train/mfu``.

    Samples are those of all ranks, between two logged steps, validation and saving left out. The
    memory is the most that the process has held (of a GPU: the most that tensors took of it), on
    this rank, since the run began. MFU (Chowdhery et al. 2022, PaLM, appendix B) is the model's
    FLOPs per second over the device's peak: those of forward and backward, without what is
    recomputed. They are counted once for each source, in the forward of its first batch, which is
    then a little slower; the backward counts as twice the trained part. Sources whose towers change
    in their lengths are estimated by that batch.

    Args:
        peak_tflops: of one device, in TFLOP/s; null: as its data sheet says, and no MFU for one
            that is not in multimodal/training/flops.py.
    """

    def __init__(self, peak_tflops: float | None = None) -> None:
        if peak_tflops is not None and peak_tflops <= 0:
            raise ValueError(f"callbacks.throughput.peak_tflops={peak_tflops} must be above 0")
        self.peak_tflops = peak_tflops
        self._peak: float | None = None
        self._flops: dict[str, float] = {}  # of a sample, by source
        self._samples = 0
        self._done = 0.0  # FLOPs since the last logged step
        self._seconds = 0.0
        self._since: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finds the device's peak."""
        self._peak = None if self.peak_tflops is None else 1e12 * self.peak_tflops
        if self._peak is None:
            arithmetic = _arithmetic(str(trainer.precision))
            self._peak = peak_flops(trainer.strategy.root_device, arithmetic)
        if self._peak is not None and hasattr(pl_module, "training_step"):
            _count_first_steps(pl_module, self._flops)
        self._since = None

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Counts the batch; at a logged step hands the numbers to the module's row."""
        now = time.perf_counter()
        if self._since is not None:
            self._seconds += now - self._since
            self._samples += len(batch) * world_size()
            self._done += self._flops.get(getattr(batch, "source", ""), 0.0) * len(batch)
        self._since = now
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        metrics: Any = getattr(pl_module, "host_metrics", None)
        if metrics is None or not every or trainer.global_step % every or not self._seconds:
            return
        metrics["train/samples_per_s"] = self._samples / self._seconds
        metrics["train/peak_memory_mb"] = peak_memory_mb(trainer.strategy.root_device)
        if self._peak is not None:
            metrics["train/mfu"] = self._done / self._seconds / self._peak
        self._samples, self._seconds, self._done = 0, 0.0, 0.0

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validation does not count as training."""
        self._since = None


def peak_memory_mb(device: torch.device) -> float:
    """The most memory held so far: by tensors on a GPU, by the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _arithmetic(precision: str) -> Arithmetic:
    if precision.startswith(("bf16", "16")):
        return "half"
    return "float32" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def _count_first_steps(module: pl.LightningModule, per_sample: dict[str, float]) -> None:
    """Has ``module.training_step`` count the FLOPs of the first batch of every source."""
    step = module.training_step

    def counting(batch: Any, batch_idx: int) -> Any:
        source = getattr(batch, "source", "")
        if source in per_sample:
            return step(batch, batch_idx)
        with torch.compiler.set_stance("force_eager"):
            forward, result = count_flops(lambda: step(batch, batch_idx))
        per_sample[source] = forward * _passes(module) / max(len(batch), 1)
        return result

    module.training_step = counting  # type: ignore[method-assign]


def _passes(module: pl.LightningModule) -> float:
    """Forward and backward over the forward alone: 3 where all is trained, 1 where nothing is.

    A frozen parameter has a forward only. What is trained below it would have half a backward
    more, which this leaves out.
    """
    sizes = [(p.numel(), p.requires_grad) for p in module.parameters() if p.ndim > 1]
    trained = sum(size for size, learns in sizes if learns)
    return 1 + 2 * trained / max(sum(size for size, _ in sizes), 1)
