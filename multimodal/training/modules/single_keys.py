"""Batches whose samples all are positives of each other: nothing is learned of them, silently."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import torch
from torch import Tensor

from multimodal.core.batch import Batch
from multimodal.core.process.provenance import is_first_rank

_METRIC = "without_negatives/"  # of the objective, per pair


class SingleKeyWarning:
    """Counts, on the device, the batches in which every sample has the same positive key.

    A loss is 0 there for want of negatives, and looks like success.
    """

    def __init__(self) -> None:
        self._batches: dict[str, Tensor] = {}
        self._sources: dict[str, str] = {}
        self._warned: set[str] = set()

    @torch.no_grad()
    def note(self, batch: Batch, metrics: Mapping[str, Tensor]) -> None:
        """Takes a look at a batch and what the objective says of it; no synchronisation.

        Args:
            batch: of training.
            metrics: of the objective, without a prefix.
        """
        keys = batch.positive_keys
        if len(keys) < 2:
            return
        for metric, without in metrics.items():
            pair = metric.removeprefix(_METRIC)
            if pair == metric or pair in self._warned:
                continue
            single = (keys == keys[0]).all() & (without > 0)  # a queue may hold negatives
            before = self._batches.get(pair)
            self._batches[pair] = single.long() if before is None else before + single
            self._sources[pair] = batch.source

    def report(self) -> None:
        """Warns once of each pair that had such a batch; called where metrics are logged."""
        for pair, batches in self._batches.items():
            count = int(batches)
            if count and pair not in self._warned and is_first_rank():
                self._warned.add(pair)
                print(
                    f"WARNING: pair '{pair}' had {count} batches (the last of source "
                    f"'{self._sources[pair]}') in which all samples have the same positive key: "
                    "there are no negatives, the loss is 0, and nothing is learned. Check the "
                    "source's positive_key, which must differ between samples, or raise "
                    "data.batch_size",
                    file=sys.stderr,
                )
        self._batches.clear()
